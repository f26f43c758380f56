"""The family description of MRA: module paths and other properties by which trireme wraps and shards the model.

MRA is a text encoder whose attention is exact only for the most important pairs of blocks of tokens.
"""

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
