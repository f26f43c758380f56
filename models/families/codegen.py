"""The family description of CodeGen: module paths and other properties by which trireme wraps, splits and shards the
model.

CodeGen has GPT-J's block with a fused query-key-value projection. The projection has four groups of heads, each with
its own query, value and key, a layout made for TPUs.
"""

from __future__ import annotations

from ..family import TensorPlan, decoder

FAMILY = decoder(
    name="codegen",
    title="CodeGen",
    model_type="codegen",
    paper="https://arxiv.org/abs/2203.13474",
    packs=True,
    embedding="transformer.wte",
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    head="lm_head",
    context="n_positions",
    layers="n_layer",
    entry=(("transformer.drop", "identity"),),
    attention=("eager",),
    tensor=TensorPlan(
        inputs=("attn", "mlp"),
        column=("attn.qkv_proj", "mlp.fc_in"),
        row=("attn.out_proj", "mlp.fc_out"),
        norms=("ln_1",),
        # Four groups of query, value and key. Every rank takes some heads of every group, so the layout is kept.
        fused=(("attn.qkv_proj", 12), ("attn.out_proj", 4)),
        divided=(("attn", "num_attention_heads"),),
        splits=(("n_head", 4), ("n_inner", 1)),
    ),
)
