"""The family description of OPT: module paths and other properties by which trireme wraps, splits and shards the model.

OPT has learned positions, ReLU, and a head tied to the embedding, which may be narrower than the hidden states.
"""

from __future__ import annotations

from ..family import TensorPlan, decoder

FAMILY = decoder(
    name="opt",
    title="OPT",
    model_type="opt",
    paper="https://arxiv.org/abs/2205.01068",
    packs=True,
    mask_maker="model.decoder",
    embedding="model.decoder.embed_tokens",
    blocks="model.decoder.layers",
    final_norm="model.decoder.final_layer_norm",
    head="lm_head",
    entry=(("model.decoder.embed_positions", "zero"),),
    first_stage_only=(("model.decoder", "project_in", None),),
    last_stage_only=(("model.decoder", "project_out", None),),
    tensor=TensorPlan(
        inputs=("self_attn", "fc1"),
        column=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "fc1"),
        row=("self_attn.out_proj", "fc2"),
        norms=("self_attn_layer_norm", "final_layer_norm"),
        divided=(("self_attn", "num_heads"),),
        splits=(("num_attention_heads", 1), ("ffn_dim", 1)),
    ),
)
