"""MRA: an encoder of texts whose attention is exact for the most important pairs of blocks only."""

from __future__ import annotations

from ..family import encoder

FAMILY = encoder(
    name="mra",
    title="MRA",
    model_type="mra",
    paper="https://arxiv.org/abs/2207.10284",
    mend="trireme.models.mend_mra.use_multi_resolution",
    attention=("eager",),
    embedding="mra.embeddings.word_embeddings",
    blocks="mra.encoder.layer",
    head="cls.predictions.decoder",
)
