"""Tests that a fine-tuned model keeps the generation settings and processor files of its base model, and that it stops
at the end tokens of the base model and of the tokenizer.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM
from trireme.models.build_model import Vocabulary, build_on_meta
from trireme.models.copy_base_files import end_of_text_ids, generation_values, write_base_assets
from trireme.models.model_config import ModelConfig, hf_config

SMALL = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
SAID = {"eos_token_id": [0, 5, 7], "temperature": 0.6, "top_p": 0.9, "do_sample": True, "of_a_later_version": 1}


@pytest.fixture
def base(tmp_path: Path) -> ModelConfig:
    folder = tmp_path / "base"
    config = hf_config(ModelConfig("llama", SMALL | {"eos_token_id": [0, 5], "bos_token_id": 1, "pad_token_id": 9}))
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    (folder / "generation_config.json").write_text(json.dumps(SAID))
    (folder / "processor_config.json").write_text("{}")
    return ModelConfig(weights=str(folder))


@pytest.mark.parametrize(
    ("ids", "own", "expected"),
    [
        ([0, 5], 0, [0, 5]),
        ([0, 5], 3, [0, 5, 3]),
        (0, 0, 0),
        (0, None, 0),
        (None, 4, 4),
        (None, None, None),
        ([2], 2, 2),
    ],
)
def test_ends_of_text_are_joined(ids: object, own: int | None, expected: object) -> None:
    assert end_of_text_ids(ids, [] if own is None else [own]) == expected  # type: ignore[arg-type]


def test_the_model_stops_where_its_base_does(base: ModelConfig) -> None:
    model = build_on_meta(base, "causal_lm", Vocabulary(64, bos=2, eos=3, pad=4))
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, [0, 5, 3], 4)
    assert model.generation_config.eos_token_id == [0, 5, 7, 3]
    model = build_on_meta(base, "causal_lm", Vocabulary(64, eos=3, stop=6))
    assert (model.config.eos_token_id, model.generation_config.eos_token_id) == ([0, 5, 3, 6], [0, 5, 7, 3, 6])
    model = build_on_meta(base, "causal_lm", Vocabulary(64))
    assert (model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id) == (1, [0, 5], 9)
    assert model.get_input_embeddings().padding_idx is None  # the padding token's embedding is trained like every other


def test_settings_and_processors_go_along(base: ModelConfig, tmp_path: Path) -> None:
    write_base_assets(base, [3], tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    assert written == SAID | {"eos_token_id": [0, 5, 7, 3]}
    assert (tmp_path / "processor_config.json").read_text() == "{}"


def test_without_base_files_nothing_is_written(base: ModelConfig, tmp_path: Path) -> None:
    (Path(str(base.weights)) / "generation_config.json").unlink()
    assert generation_values(base, [3]) is None
    write_base_assets(ModelConfig("llama"), [3], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
