"""A dual encoder of pictures and texts: any vision model and any text model, each with a projection (LiT, CLIP)."""

from __future__ import annotations

from ..family import ModelFamily, Stack
from ..other_families import TEMPERATURE

FAMILY = ModelFamily(
    name="vision_text_dual_encoder",
    title="Dual encoder of pictures and texts",
    model_type="vision-text-dual-encoder",
    paper="https://arxiv.org/abs/2111.07991",
    stacks=(
        Stack("vision_model.encoder.layer"),
        Stack("vision_model.layers"),
        Stack("text_model.encoder.layer"),
    ),
    embeddings=("text_model.embeddings.word_embeddings",),
    attention=("sdpa", "eager"),
    initial=(("logit_scale", TEMPERATURE),),
)
