"""The family description of BERT: module paths and other properties by which trireme wraps and shards the model.

BERT is a text encoder with learned positions, for masked language modelling and for classifying texts and tokens.
"""

from __future__ import annotations

from ..family import encoder

FAMILY = encoder(
    name="bert",
    title="BERT",
    model_type="bert",
    paper="https://arxiv.org/abs/1810.04805",
    embedding="bert.embeddings.word_embeddings",
    blocks="bert.encoder.layer",
    head="cls.predictions.decoder",
)
