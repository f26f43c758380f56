"""Collator for speech-to-text with an encoder-decoder: audio to read, and texts that the decoder learns to write.

In training, spans of the audio are silenced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ...models.facts import Facts
from ...models.vocabulary import Vocabulary, decoder_start
from ...parallel.micro_batch import MicroBatch
from .base_collator import Sample, positions
from .seq2seq_collator import written
from .speech_collator import SpeechCollator


@dataclass
class SpeechTextCollator(SpeechCollator):
    """Pads audio clips for the encoder, and texts to the longest of a micro-batch for the decoder."""

    pad_token_id: int = 0
    """Token id of padding positions; given by the engine from the tokenizer."""
    facts: Facts = field(default_factory=Facts)
    """Given by the engine."""
    pad_to_multiple_of: int = 8
    """Padded lengths of texts are multiples of this."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        inputs, lengths = self.audio_inputs(samples)
        targets = [np.asarray(sample["labels"]) for sample in samples]
        start = decoder_start(self.model, self.facts.vocabulary or Vocabulary(0))
        read, labels = written(targets, start, self.pad_token_id, self.pad_to_multiple_of)
        return MicroBatch({**inputs, "decoder_input_ids": read}, {"labels": labels}, positions(samples), sum(lengths))
