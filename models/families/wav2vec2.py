"""The family description of wav2vec 2.0: module paths and other properties by which trireme wraps and shards the model.

wav2vec 2.0 applies convolutions to a waveform, then a Transformer encoder to the frames.
"""

from __future__ import annotations

from ..family import speech

FAMILY = speech(
    name="wav2vec2",
    title="wav2vec 2.0",
    model_type="wav2vec2",
    paper="https://arxiv.org/abs/2006.11477",
    blocks="wav2vec2.encoder.layers",
)
