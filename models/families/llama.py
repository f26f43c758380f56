"""The family description of Llama: module paths and other properties by which trireme wraps, splits and shards the
model.

Llama has RMSNorm, SwiGLU, rotary positions and grouped-query attention.
"""

from __future__ import annotations

from ..family import TensorPlan, decoder

FAMILY = decoder(
    name="llama",
    title="Llama",
    model_type="llama",
    paper="https://arxiv.org/abs/2302.13971",
    packs=True,
    embedding="model.embed_tokens",
    blocks="model.layers",
    final_norm="model.norm",
    head="lm_head",
    tensor=TensorPlan(
        inputs=("self_attn", "mlp"),
        column=("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj"),
        row=("self_attn.o_proj", "mlp.down_proj"),
        norms=("input_layernorm", "post_attention_layernorm"),
        key_value=("self_attn.k_proj", "self_attn.v_proj"),
        key_value_heads="num_key_value_heads",
        groups=("self_attn", "num_key_value_groups"),
        splits=(("num_attention_heads", 1), ("intermediate_size", 1)),
    ),
    config_extras=("rope_theta", "rope_scaling"),
)
