"""Vision Transformer: an encoder over the patches of a picture."""

from __future__ import annotations

from ..family import vision

FAMILY = vision(
    name="vit",
    title="ViT",
    model_type="vit",
    paper="https://arxiv.org/abs/2010.11929",
    blocks="vit.layers",
)
