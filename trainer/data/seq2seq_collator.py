"""Collator for encoder-decoder models of text: one token sequence to read, and one that the decoder learns to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from ...models.facts import Facts
from ...models.loss import IGNORE
from ...models.vocabulary import Vocabulary, decoder_start
from ...parallel.micro_batch import MicroBatch
from .base_collator import Collator, Sample, positions
from .padded_collator import padded


@dataclass
class Seq2SeqCollator(Collator):
    """Pads sources and targets to the longest of a micro-batch. The decoder reads each target shifted by one, behind
    its starting token, so the labels stand at the positions that predict them."""

    pad_token_id: int
    """Token id of padding positions; given by the engine from the tokenizer."""
    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    model: Any
    """The model's transformers configuration; given by the engine."""
    facts: Facts
    """Given by the engine."""
    pad_to_multiple_of: int = 8
    """Padded lengths are multiples of this."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        sources = [np.asarray(sample["input_ids"]) for sample in samples]
        targets = [np.asarray(sample["labels"]) for sample in samples]
        wide = multiple(sources, self.pad_to_multiple_of)
        read, labels = written(
            targets,
            decoder_start(self.model, self.facts.vocabulary or Vocabulary(0)),
            self.pad_token_id,
            self.pad_to_multiple_of,
        )
        inputs = {
            "input_ids": padded(sources, wide, self.pad_token_id),
            "attention_mask": padded([np.ones(len(source), np.int64) for source in sources], wide, 0),
            "decoder_input_ids": read,
        }
        return MicroBatch(inputs, {"labels": labels}, positions(samples), sum(map(len, (*sources, *targets))))


def written(targets: Sequence[np.ndarray], start: int, pad: int, of: int) -> tuple[Tensor, Tensor]:
    """The decoder's input, and its labels at the positions that predict them: both [texts, length].

    Args:
        start: the token with which the decoder begins.
        pad: the token of padding positions.
        of: the length is a multiple of this.
    """
    length = multiple(targets, of)
    read = [np.concatenate([[start], target[:-1]]) for target in targets]
    return padded(read, length, pad), padded(targets, length, IGNORE)


def multiple(arrays: Sequence[np.ndarray], of: int) -> int:
    """Length of the longest array, rounded up to a multiple."""
    return -(-max(map(len, arrays)) // of) * of
