"""The family description of GPT-NeoX and Pythia: module paths and other properties by which trireme wraps, splits and
shards the model.

Both compute attention and MLP in parallel, with rotary positions on part of each head.
"""

from __future__ import annotations

from ..family import TensorPlan, decoder

FAMILY = decoder(
    name="gpt_neox",
    title="GPT-NeoX",
    model_type="gpt_neox",
    paper="https://arxiv.org/abs/2204.06745",
    packs=True,
    embedding="gpt_neox.embed_in",
    blocks="gpt_neox.layers",
    final_norm="gpt_neox.final_layer_norm",
    head="lm_head",
    entry=(("gpt_neox.emb_dropout", "identity"),),
    tensor=TensorPlan(
        inputs=("attention", "mlp"),
        column=("attention.query_key_value", "mlp.dense_h_to_4h"),
        row=("attention.dense", "mlp.dense_4h_to_h"),
        norms=("input_layernorm", "post_attention_layernorm"),
        splits=(("num_attention_heads", 1), ("intermediate_size", 1)),
    ),
    stored_names=(("embed_out", "lm_head"),),
    config_extras=("rotary_pct", "rotary_emb_base", "rope_scaling"),
)
