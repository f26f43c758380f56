"""The family description of the Vision Transformer: module paths and other properties by which trireme wraps and shards
the model.

The Vision Transformer is an encoder over the patches of an image.
"""

from __future__ import annotations

from ..family import vision

FAMILY = vision(
    name="vit",
    title="ViT",
    model_type="vit",
    paper="https://arxiv.org/abs/2010.11929",
    blocks="vit.layers",
)
