"""Weights load under their published tensor names, although newer classes of transformers use other names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from trireme.models.build_model import build_on_meta, weight_source
from trireme.models.facts import Facts
from trireme.models.model_config import ModelConfig

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
WAV2VEC2 = {**SIZES, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "conv_dim": [8] * 7}
KINDS = [
    ("ViTForImageClassification", {**SIZES, "image_size": 8, "patch_size": 4}, "image_classification", {}),
    ("Wav2Vec2ForCTC", WAV2VEC2, "ctc", {"parametrizations.weight.original0": "weight_g"}),
]


@pytest.mark.parametrize("whole", [True, False], ids=["with its head", "without its head"])
@pytest.mark.parametrize(("name", "config", "head", "older"), KINDS, ids=[name for name, *_ in KINDS])
def test_published_names(
    tmp_path: Path, name: str, config: dict[str, Any], head: str, older: dict[str, str], whole: bool
) -> None:
    kind = getattr(transformers, name)
    theirs = kind(kind.config_class(**config))
    (theirs if whole else theirs.base_model).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = {_older(key, older): tensor for key, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    recipe = ModelConfig(weights=str(tmp_path))
    model = build_on_meta(recipe, head, Facts())
    names = {key for key, _ in model.named_parameters()}
    with safe_open(file, "pt") as opened:
        assert names - set(opened.keys())  # so some names differ
    found = dict(weight_source(recipe, model, 0)(names))
    wanted = dict(theirs.named_parameters())
    loaded = [key for key in names if whole or key.startswith(f"{theirs.base_model_prefix}.")]
    assert set(found) == names and loaded
    assert all(torch.equal(found[key], wanted[key]) for key in loaded)


def _older(key: str, older: dict[str, str]) -> str:
    for new, old in older.items():
        key = key.replace(new, old)
    return key
