"""The family description of Phi (1, 1.5, 2): module paths and other properties by which trireme wraps, splits and
shards the model.

Phi computes attention and MLP in parallel behind one norm, with rotary positions on part of each head.
"""

from __future__ import annotations

from ..family import TensorPlan, decoder

FAMILY = decoder(
    name="phi",
    title="Phi",
    model_type="phi",
    paper="https://arxiv.org/abs/2309.05463",
    packs=True,
    embedding="model.embed_tokens",
    blocks="model.layers",
    final_norm="model.final_layernorm",
    head="lm_head",
    entry=(("model.embed_dropout", "identity"),),
    tensor=TensorPlan(
        inputs=("self_attn", "mlp"),
        column=("self_attn.q_proj", "mlp.fc1"),
        row=("self_attn.dense", "mlp.fc2"),
        norms=("input_layernorm",),
        per_head=("self_attn.q_layernorm", "self_attn.k_layernorm"),
        key_value=("self_attn.k_proj", "self_attn.v_proj"),
        key_value_heads="num_key_value_heads",
        groups=("self_attn", "num_key_value_groups"),
        splits=(("num_attention_heads", 1), ("intermediate_size", 1)),
    ),
    fp16="overflows in attention under fp16",
    config_extras=("partial_rotary_factor", "rope_theta", "rope_scaling"),
)
