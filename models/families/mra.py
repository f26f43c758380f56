"""MRA: an encoder of texts whose attention computes the pairs of blocks that matter most, and the others by means."""

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
