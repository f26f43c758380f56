"""Collator for pairs of audio and texts (captions), for models that read both, such as CLAP.

Audio and token sequences are padded. In training, spans of the audio are silenced.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from ...parallel.micro_batch import MicroBatch
from .base_collator import Sample, positions
from .image_text_collator import captions
from .speech_collator import SpeechCollator


@dataclass
class AudioTextCollator(SpeechCollator):
    """Makes micro-batches of pairs; every row that is a pair counts one label."""

    pad_token_id: int = 0
    """Token id of padding positions; given by the engine from the tokenizer."""
    block_size: int = 64
    """Every caption is padded to this length, so that all ranks see one shape; given by the engine from
    ``data.block_size``."""
    inputs: frozenset[str] | None = None
    """Names of the inputs that the model takes; given by the engine."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        inputs, lengths = self.audio_inputs(samples)
        inputs |= captions(samples, self.block_size, self.pad_token_id, self.inputs)
        paired = torch.ones(len(samples), dtype=torch.bool)
        return MicroBatch(inputs, {"paired": paired}, positions(samples), sum(lengths))
