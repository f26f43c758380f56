"""The family description of GPT-J: module paths and other properties by which trireme wraps, splits and shards the
model.

GPT-J computes attention and MLP in parallel behind one norm, with rotary positions on interleaved pairs of features.
"""

from __future__ import annotations

from ..family import TensorPlan, decoder

FAMILY = decoder(
    name="gptj",
    title="GPT-J",
    model_type="gptj",
    paper="https://github.com/kingoflolz/mesh-transformer-jax",
    packs=True,
    embedding="transformer.wte",
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    head="lm_head",
    context="n_positions",
    layers="n_layer",
    entry=(("transformer.drop", "identity"),),
    attention=("eager", "flash_attention_2"),
    tensor=TensorPlan(
        inputs=("attn", "mlp"),
        column=("attn.q_proj", "attn.k_proj", "attn.v_proj", "mlp.fc_in"),
        row=("attn.out_proj", "mlp.fc_out"),
        norms=("ln_1",),
        divided=(("attn", "num_attention_heads"),),
        splits=(("n_head", 1), ("n_inner", 1)),
    ),
)
