"""The family description of image-text dual encoders: module paths and other properties by which trireme wraps and
shards the model.

Examples are CLIP and LiT. A dual encoder joins any vision model and any text model of transformers, each followed by a
projection.
"""

from __future__ import annotations

from ..family import ModelFamily, Stack
from ..other_families import TEMPERATURE

FAMILY = ModelFamily(
    name="vision_text_dual_encoder",
    title="Dual encoder of images and texts",
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
