"""Persimmon: query/key LayerNorm, squared ReLU, rotary position on part of each head."""

from __future__ import annotations

from ..family import ModelFamily

FAMILY = ModelFamily(
    name="persimmon",
    title="Persimmon",
    model_type="persimmon",
    paper="https://www.adept.ai/blog/persimmon-8b",
    embedding="model.embed_tokens",
    blocks="model.layers",
    final_norm="model.final_layernorm",
    head="lm_head",
    config_extras=("partial_rotary_factor", "rope_theta", "rope_scaling"),
)
