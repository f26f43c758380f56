"""The family description of Perceiver AR: module paths and other properties by which trireme wraps, splits and shards
the model.

Perceiver AR is a causal language model. In its first layer, the last positions of a text attend to the whole text; in
later layers they attend only to each other.

The model classes are trireme's own (``models/perceiver_ar``), since transformers has none.
"""

from __future__ import annotations

from ..family import Cut, ModelFamily, Stack, TensorPlan

FAMILY = ModelFamily(
    name="perceiver_ar",
    title="Perceiver AR",
    model_type="perceiver_ar",
    paper="https://arxiv.org/abs/2202.07765",
    classes="trireme.models.perceiver_ar",
    published=(
        "trireme.models.perceiver_ar.perceiver_published",
        ("perceiver-ar-causal-language-model", "perceiver-ar-symbolic-audio-model"),
    ),
    collator="trireme.trainer.data.latent_collator.LatentCollator",
    attention=("sdpa", "eager"),
    packs=False,
    embeddings=("model.embed_tokens",),
    heads=(("causal_lm", "lm_head"),),
    cut=Cut(
        embedding="model.embed_tokens",
        final_norm="model.norm",
        head="lm_head",
        entry=(("model.embed_positions", "zero"),),
    ),
    stacks=(
        Stack(
            "model.layers",
            context="max_position_embeddings",
            latents="max_latents",
            tensor=TensorPlan(
                inputs=("attention", "mlp"),
                column=("attention.q_proj", "attention.k_proj", "attention.v_proj", "mlp.up_proj"),
                row=("attention.o_proj", "mlp.down_proj"),
                norms=("attention_norm", "prefix_norm", "mlp_norm"),
                splits=(("num_attention_heads", 1), ("intermediate_size", 1), ("hybrid_intermediate_size", 1)),
                whole_blocks=1,  # the first layer tells prefix and latents apart by their places
            ),
        ),
    ),
)
