"""Tests of ``model.family=auto``: one architecture of each kind trains by name, and wrong architectures are refused.

``make families`` trains all architectures.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from families.matrix import TOLERANCE, try_architecture
from trireme.models.model_config import ModelConfig

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
OF_EACH_SHAPE = [
    ("qwen3", ["fsdp_full_shard", "tp"]),
    ("bart", ["fsdp_full_shard"]),
    ("swin", ["zero3"]),
    ("yolos", ["ddp"]),
    ("bridgetower", ["ddp"]),  # its class is named, and no loss reaches some of its parts
    pytest.param("roberta", ["ddp"], marks=pytest.mark.long),
    pytest.param("canine", ["ddp"], marks=pytest.mark.long),
    pytest.param("upernet", ["ddp"], marks=pytest.mark.long),
    pytest.param("clip", ["fsdp_full_shard"], marks=pytest.mark.long),
    pytest.param("pix2struct", ["ddp"], marks=pytest.mark.long),
    pytest.param("data2vec-audio", ["zero3"], marks=[needs_espeak, pytest.mark.long]),
    pytest.param("whisper", ["fsdp_full_shard"], marks=needs_espeak),
    pytest.param("clap", ["ddp"], marks=[needs_espeak, pytest.mark.long]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("model_type", "plans"), OF_EACH_SHAPE)
def test_an_architecture_without_a_file(model_type: str, plans: list[str], tmp_path: Path) -> None:
    found = try_architecture(model_type, tmp_path, plans)
    assert found.resumed and found.exported and found.parameters > 1_000
    assert set(found.differences) == set(plans)
    assert max(found.differences.values()) < TOLERANCE


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "family=auto needs it"),
        ({"model_type": "qwen33"}, "did you mean qwen3?"),
        ({"model_type": "cpmant"}, "is not causal"),
        (
            {"model_type": "encoder-decoder", "encoder": {"model_type": "mra"}, "decoder": {"model_type": "bert"}},
            "encoder.model_type='mra' is refused",
        ),
    ],
)
def test_unknown_and_wrong_architectures_are_refused(config: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("?", r"\?")):
        ModelConfig("auto", dict(config))


@pytest.mark.parametrize("name", ["MraForMaskedLM", "CpmAntForCausalLM"])
def test_a_wrong_class_is_refused_by_its_path_too(name: str) -> None:
    with pytest.raises(ValueError, match="is refused"):
        ModelConfig(architecture=f"transformers.{name}")


def test_weights_of_a_wrong_architecture_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "cpmant"}')
    with pytest.raises(ValueError, match="is not causal"):
        ModelConfig(weights=str(tmp_path))


def test_auto_takes_the_file_of_a_family_that_has_one() -> None:
    assert ModelConfig("auto", {"model_type": "t5"}).family == "t5"
