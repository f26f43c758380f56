"""Llama: RMSNorm, SwiGLU, rotary position, grouped-query attention."""

from __future__ import annotations

from ..family import ModelFamily

FAMILY = ModelFamily(
    name="llama",
    title="Llama",
    model_type="llama",
    paper="https://arxiv.org/abs/2302.13971",
    embedding="model.embed_tokens",
    blocks="model.layers",
    final_norm="model.norm",
    head="lm_head",
    config_extras=("rope_theta", "rope_scaling"),
)
