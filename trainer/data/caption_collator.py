"""Collator for image captioning: images as inputs, and captions as the texts that the model learns to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ...models.facts import Facts
from ...models.vocabulary import Vocabulary, decoder_start
from ...parallel.micro_batch import MicroBatch
from .base_collator import Collator, Sample, positions
from .image_text_rows import IMAGE_ARRAYS
from .padded_collator import padded
from .seq2seq_collator import written


@dataclass
class CaptionCollator(Collator):
    """Stacks images, and pads captions to the longest of a micro-batch. A decoder reads each caption shifted by one,
    behind its starting token, so the labels stand at the positions that predict them."""

    pad_token_id: int
    """Token id of padding positions; given by the engine from the tokenizer."""
    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    model: Any
    """The model's transformers configuration; given by the engine."""
    facts: Facts = field(default_factory=Facts)
    """Labels and vocabulary of the data; given by the engine."""
    pad_to_multiple_of: int = 8
    """Padded lengths are multiples of this."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        inputs = {
            name: torch.from_numpy(np.stack([sample[name] for sample in samples]))
            for name in IMAGE_ARRAYS
            if name in samples[0]
        }
        targets = [np.asarray(sample["labels"]) for sample in samples]
        start = decoder_start(self.model, self.facts.vocabulary or Vocabulary(0))
        read, labels = written(targets, start, self.pad_token_id, self.pad_to_multiple_of)
        if self.model.is_encoder_decoder:
            inputs["decoder_input_ids"] = read
        else:
            there = padded([np.ones(len(target), np.int64) for target in targets], labels.shape[1], 0)
            inputs |= {"input_ids": read, "attention_mask": there}
            if inputs["pixel_values"].ndim == 5:
                inputs["image_attention_mask"] = torch.ones(len(samples), labels.shape[1], 1, dtype=torch.int64)
        return MicroBatch(inputs, {"labels": labels}, positions(samples), len(samples))
