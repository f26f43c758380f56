"""The family description of Persimmon: module paths and other properties by which trireme wraps, splits and shards the
model.

Persimmon has LayerNorm on queries and keys, squared ReLU, and rotary positions on part of each head.
"""

from __future__ import annotations

from ..family import TensorPlan, decoder

FAMILY = decoder(
    name="persimmon",
    title="Persimmon",
    model_type="persimmon",
    paper="https://www.adept.ai/blog/persimmon-8b",
    packs=True,
    embedding="model.embed_tokens",
    blocks="model.layers",
    final_norm="model.final_layernorm",
    head="lm_head",
    attention=("sdpa", "eager", "flash_attention_2"),
    tensor=TensorPlan(
        inputs=("self_attn", "mlp"),
        column=("self_attn.query_key_value", "mlp.dense_h_to_4h"),
        row=("self_attn.dense", "mlp.dense_4h_to_h"),
        norms=("input_layernorm", "post_attention_layernorm"),
        per_head=("self_attn.q_layernorm", "self_attn.k_layernorm"),
        divided=(("self_attn", "num_heads"),),
        splits=(("num_attention_heads", 1), ("intermediate_size", 1)),
    ),
    fp16="gives NaN when it is fine-tuned in fp16",
    config_extras=("partial_rotary_factor", "rope_theta", "rope_scaling"),
)
