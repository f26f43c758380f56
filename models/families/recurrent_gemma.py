"""The family description of RecurrentGemma: module paths and other properties by which trireme wraps, splits and shards
the model.

RecurrentGemma has gated linear recurrences, and local attention in every third block (Griffin).
"""

from __future__ import annotations

from ..family import TensorPlan, decoder

FAMILY = decoder(
    name="recurrent_gemma",
    title="RecurrentGemma",
    model_type="recurrent_gemma",
    paper="https://arxiv.org/abs/2404.07839",
    packs=True,
    mend="trireme.models.linear_recurrent_gemma.use_linear_recurrence",
    convolutions=(("temporal_block", "conv_1d"),),
    embedding="model.embed_tokens",
    blocks="model.layers",
    final_norm="model.final_norm",
    head="lm_head",
    context="",  # no limit: there is no position table, and the recurrence runs over any length
    first_stage_only=(("model", "normalizer", 1.0),),
    # cap * tanh(x / cap) returns x itself, bit for bit, for a power of two this large (in types of 8 exponent bits).
    last_stage_only=(("config", "logits_soft_cap", 2.0**64),),
    tensor=TensorPlan(
        inputs=("temporal_block", "mlp_block"),
        column=(
            "temporal_block.q_proj",
            "temporal_block.linear_x",
            "temporal_block.linear_y",
            "temporal_block.conv_1d",
            "temporal_block.rg_lru",
            "mlp_block.gate_proj",
            "mlp_block.up_proj",
        ),
        row=("temporal_block.o_proj", "temporal_block.linear_out", "mlp_block.down_proj"),
        norms=("temporal_pre_norm", "channel_pre_norm"),
        key_value=("temporal_block.k_proj", "temporal_block.v_proj"),
        key_value_heads="num_key_value_heads",
        groups=("temporal_block", "num_key_value_groups"),
        divided=(("temporal_block.conv_1d", "groups"), ("temporal_block.rg_lru", "num_attention_heads")),
        splits=(("num_attention_heads", 1), ("lru_width", 1), ("intermediate_size", 2)),
    ),
    fp16="was trained in bf16, and its activations leave the range of fp16",
    config_extras=("partial_rotary_factor", "rope_theta"),
)
