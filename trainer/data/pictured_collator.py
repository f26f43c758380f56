"""Collator for conversations with images: it pads the tokens, and concatenates the images of all samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...errors import Problem, UserError
from ...models.loss import IGNORE
from ...parallel.micro_batch import MicroBatch
from .base_collator import Collator, Sample, positions
from .padded_collator import padded

OF_TEXTS = ("input_ids", "labels", "index", "position")


@dataclass
class PicturedCollator(Collator):
    """Every sample has the same number of images, so that the first dimension of all arrays is the sample, or a
    multiple of it. The labels stand at the positions that predict them."""

    block_size: int
    """Tokens of the longest sample; given by the engine from ``data.block_size``."""
    pad_token_id: int
    """Token id of padding positions; given by the engine from the tokenizer."""
    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    pad_to_multiple_of: int = 8
    """Padded lengths are multiples of this (but at most ``block_size``)."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        sizes = [len(sample["input_ids"]) for sample in samples]
        multiple = self.pad_to_multiple_of
        length = max(min(-(-max(sizes) // multiple) * multiple, self.block_size), max(sizes))
        inputs = {
            "input_ids": padded([sample["input_ids"] for sample in samples], length, self.pad_token_id),
            "attention_mask": padded([np.ones(size, np.int64) for size in sizes], length, 0),
        }
        shapes = {name: sample[name].shape for sample in samples for name in sample if name not in OF_TEXTS}
        for name in shapes:
            arrays = [sample[name] for sample in samples]
            if any(array.shape != arrays[0].shape for array in arrays):
                why = f"has images of different numbers or sizes in one batch ({name})"
                fix = "give every conversation equally many, and a processor that makes one size of them"
                raise UserError(Problem("data.source", why, fix))
            inputs[name] = torch.from_numpy(np.concatenate(arrays))
        labels = padded([np.append(sample["labels"][1:], IGNORE) for sample in samples], length, IGNORE)
        return MicroBatch(inputs, {"labels": labels}, positions(samples), sum(sizes))
