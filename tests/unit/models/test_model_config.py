"""Tests of the ``model`` section of a recipe: invalid values are refused before launch, presets have their published
sizes, and the estimate of FLOPs agrees with torch's count.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode
from trireme.errors import UserError
from trireme.models.build_model import Vocabulary, build_on_meta
from trireme.models.check_model import check_model
from trireme.models.family import families
from trireme.models.find_blocks import blocks_of
from trireme.models.flops import training_flops_per_token
from trireme.models.model_config import ModelConfig, hf_config
from trireme.models.other_families import described

PRESETS = {
    path.stem: yaml.safe_load(path.read_text())
    for path in (Path(__file__).parents[3] / "configs" / "model").glob("*.yaml")
    if path.stem != "pretrained"
}
BILLIONS = {
    "persimmon_8b": 9.40,
    "gpt_neox_20b": 20.55,
    "pythia_70m": 0.070,
    "pythia_160m": 0.162,
    "pythia_410m": 0.405,
    "pythia_1b": 1.01,
    "pythia_1.4b": 1.41,
    "pythia_2.8b": 2.78,
    "pythia_6.9b": 6.86,
    "pythia_12b": 11.85,
    "llama_7b": 6.74,
    "llama_13b": 13.0,
    "llama_33b": 32.5,
    "llama_65b": 65.3,
    "llama2_7b": 6.74,
    "llama2_13b": 13.0,
    "llama2_70b": 69.0,
    "llama3_8b": 8.03,
    "llama3_70b": 70.6,
    "llama3.1_8b": 8.03,
    "llama3.2_1b": 1.24,
    "llama3.2_3b": 3.21,
    "gpt2": 0.124,
    "gpt2_medium": 0.355,
    "gpt2_large": 0.774,
    "gpt2_xl": 1.558,
    "opt_125m": 0.125,
    "opt_350m": 0.331,
    "opt_1.3b": 1.316,
    "opt_2.7b": 2.652,
    "opt_6.7b": 6.658,
    "gptj_6b": 6.05,
    "phi_1": 1.418,
    "phi_1.5": 1.418,
    "phi_2": 2.78,
    "codegen_350m": 0.357,
    "codegen_2b": 2.779,
    "codegen_6b": 7.069,
    "recurrentgemma_2b": 2.683,
    "recurrentgemma_9b": 8.58,
    "perceiver_ar_455m": 0.454,
    "perceiver_ar_imagenet64": 0.781,
    "perceiver_ar_piano": 0.315,
    "transformer_xl_wt103_base": 0.151,
    "transformer_xl_wt103_large": 0.2852,
    "bert_base": 0.1097,
    "mra_base": 0.1247,
    "t5_small": 0.077,
    "vit_base": 0.0858,
    "wav2vec2_base": 0.0944,
}
OTHER_HEADS = {
    "vision_text_dual_encoder": "features",
    "vit": "image_classification",
    "wav2vec2": "ctc",
    "auto": "image_classification",
}
"""Head of families without an output layer over tokens."""
TINY = {
    "persimmon_mini",
    "resnet_tiny",
    "bert_mini",
    "t5_mini",
    "perceiver_ar_mini",
    "transformer_xl_mini",
    *(f"{name}_tiny" for name in families()),
}


def test_every_published_preset_is_here() -> None:
    assert set(BILLIONS) | TINY == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_build_on_meta_with_the_published_size(name: str) -> None:
    settings = {key: _number(value) for key, value in PRESETS[name]["config"].items()}
    config = ModelConfig(**{**PRESETS[name], "config": settings})
    head = next((task for task, _ in config.spec.heads), None) or OTHER_HEADS[config.spec.name]
    assert check_model(config, 128, head) == []
    model = build_on_meta(config, head, Vocabulary(30))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert blocks_of(model, described(config.spec, model))
    cut = config.spec.cut
    for path in () if cut is None else (cut.embedding, cut.final_norm, cut.head):
        if (name, path) != ("opt_350m", "model.decoder.final_layer_norm"):  # its blocks end with a norm
            model.get_submodule(path)
    if name in BILLIONS:
        assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(BILLIONS[name], rel=0.01)


def _number(value):
    """PyYAML, unlike Hydra, reads 1e-5 as text."""
    return float(value) if isinstance(value, str) and value[:1].isdigit() else value


def test_an_unknown_family_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean persimmon"):
        ModelConfig("persimon")
    assert {"persimmon", "gpt_neox", "llama"} <= set(families())


def test_problems_are_found_together() -> None:
    problems = check_model(ModelConfig("llama", {"hidden_sise": 3, "num_layerz": 2}), 8)
    assert [problem.field for problem in problems] == ["model.config.hidden_sise", "model.config.num_layerz"]
    assert "hidden_size" in problems[0].fix


@pytest.mark.parametrize("family", ["llama", "auto"])
def test_unknown_keys_and_wrong_types_are_told_together(family: str) -> None:
    named = {"model_type": "llama"} if family == "auto" else {}
    given = {**named, "hidden_sise": 8, "hidden_size": "x", "num_hidden_layers": 1.5, "num_attention_heads": 7}
    problems = {problem.field: problem.why for problem in check_model(ModelConfig(family, given), 16)}
    assert problems == {
        "model.config.hidden_sise": "unknown key of LlamaConfig",
        "model.config.hidden_size": "must be a whole number",
        "model.config.num_hidden_layers": "must be a whole number",
    }


@pytest.mark.parametrize(
    ("config", "word"), [({"hidden_size": "big"}, "a whole number"), ({"hidden_size": 30}, "multiple")]
)
def test_wrong_values_become_problems(config: dict, word: str) -> None:
    (problem,) = check_model(ModelConfig("llama", {"num_attention_heads": 4, **config}), 8)
    assert problem.field == "model.config.hidden_size" and word in problem.why


def test_recipe_fields_win_over_the_folder(tmp_path: Path) -> None:
    hf_config(ModelConfig("llama", {"hidden_size": 64, "num_attention_heads": 4})).save_pretrained(tmp_path)
    config = hf_config(ModelConfig("llama", {"attention_dropout": 0.5}, weights=str(tmp_path)))
    assert (config.hidden_size, config.attention_dropout) == (64, 0.5)


def test_a_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(UserError, match="vocab_size"):
        build_on_meta(ModelConfig("llama", {"vocab_size": 10}), "causal_lm", Vocabulary(11))


def test_flops_are_those_that_torch_counts() -> None:
    """They agree but for norms and softmax, which the formula leaves out, and the causal half, which it counts."""
    small = {
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    model = build_on_meta(ModelConfig("llama", small, attention="eager"), "causal_lm", Vocabulary(512))
    tokens = torch.zeros(1, 64, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        type(model)(model.config)(input_ids=tokens).logits.sum().backward()
    assert training_flops_per_token(model, families()["llama"], 64) == pytest.approx(
        counter.get_total_flops() / 64, rel=0.02
    )


def test_what_needs_torch_is_left_to_the_process_of_the_check() -> None:
    """Without torch, transformers cannot look an activation up; its words for that are no problem of the recipe."""
    config = {"family": "persimmon", "config": {"vocab_size": 64, "hidden_size": 64, "hidden_act": "sillu"}}
    command = [sys.executable, "-m", "trireme.models.accept_in_subprocess"]
    done = subprocess.run(command, input=json.dumps(config), capture_output=True, text=True)
    assert done.returncode == 1 and not done.stdout
