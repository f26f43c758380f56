"""A layer with weight norm starts with weights of its model's initial distribution, stored as norm and direction."""

from __future__ import annotations

import math

import torch
from trireme.models.build_model import build_on_meta
from trireme.models.facts import Facts
from trireme.models.initial_weights import initial_weights
from trireme.models.model_config import ModelConfig

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
CONFIG = {**SIZES, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "conv_dim": [8] * 7}
CONV = "wav2vec2.encoder.pos_conv_embed.conv"


def test_norm_and_direction_make_the_weight_that_the_rule_draws() -> None:
    model = build_on_meta(ModelConfig("wav2vec2", CONFIG), "ctc", Facts())
    drawn = dict(initial_weights(model, 0))
    assert set(drawn) >= {name for name, _ in model.named_parameters()}
    assert not any(tensor.isnan().any() for tensor in drawn.values())
    norm, direction = (drawn[f"{CONV}.parametrizations.weight.original{number}"] for number in (0, 1))
    assert torch.allclose(torch.norm_except_dim(direction, 2, 2), norm)
    assert math.isclose(float(direction.std()), 2 * math.sqrt(1 / (16 * 32)), rel_tol=0.1)
    assert not drawn[f"{CONV}.bias"].any()
    model.get_submodule(CONV).weight  # noqa: B018 - the module itself is as it was
    again = dict(initial_weights(model, 0, {f"{CONV}.parametrizations.weight.original1"}))
    assert list(again) == [f"{CONV}.parametrizations.weight.original1"]
    assert torch.equal(next(iter(again.values())), direction)
