"""The family description of GPT-2 and GPT-Sw3: module paths and other properties by which trireme wraps, splits and
shards the model.

Both have learned positions, a fused query-key-value projection, and a head tied to the embedding.
"""

from __future__ import annotations

from ..family import TensorPlan, decoder

FAMILY = decoder(
    name="gpt2",
    title="GPT-2",
    model_type="gpt2",
    paper="https://cdn.openai.com/better-language-models/language_models_are_unsupervised_multitask_learners.pdf",
    packs=True,
    embedding="transformer.wte",
    blocks="transformer.h",
    final_norm="transformer.ln_f",
    head="lm_head",
    context="n_positions",
    layers="n_layer",
    entry=(("transformer.wpe", "zero"), ("transformer.drop", "identity")),
    attention=("sdpa", "eager", "flash_attention_2"),
    tensor=TensorPlan(
        inputs=("attn", "mlp"),
        column=("attn.c_attn", "mlp.c_fc"),
        row=("attn.c_proj", "mlp.c_proj"),
        norms=("ln_1", "ln_2"),
        fused=(("attn.c_attn", 3),),
        divided=(("attn", "num_heads"), ("attn", "split_size")),
        splits=(("n_head", 1), ("n_inner", 1)),
    ),
)
