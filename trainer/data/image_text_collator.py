"""Collator for pairs of images and texts (captions), for models that read both, such as CLIP.

Texts are padded to the same number of tokens, and images are augmented in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...parallel.micro_batch import MicroBatch
from .base_collator import Sample, positions
from .image_collator import ImageCollator
from .padded_collator import INPUTS, padded, takes


@dataclass
class ImageTextCollator(ImageCollator):
    """Makes micro-batches of pairs; every row that is a pair counts one label."""

    pad_token_id: int = 0
    """Token id of padding positions; given by the engine from the tokenizer."""
    block_size: int = 64
    """Every caption is padded to this length, so that all ranks see one shape; given by the engine from
    ``data.block_size``."""
    inputs: frozenset[str] | None = None
    """Names of the inputs that the model takes; given by the engine."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        inputs = captions(samples, self.block_size, self.pad_token_id, self.inputs)
        inputs["pixel_values"] = torch.from_numpy(np.stack([sample["pixel_values"] for sample in samples]))
        paired = torch.ones(len(samples), dtype=torch.bool)
        return MicroBatch(inputs, {"paired": paired}, positions(samples), len(samples))


def captions(samples: Sequence[Sample], length: int, pad: int, taken: frozenset[str] | None) -> dict[str, torch.Tensor]:
    """The texts of samples as inputs of a model, all padded to ``length``.

    Args:
        taken: names of the inputs that the model takes; None if they are not known.
    """
    fill = {"input_ids": pad}
    inputs = {
        name: padded([sample[name] for sample in samples], length, fill.get(name, 0))
        for name in INPUTS
        if name in samples[0] and takes(taken, name)
    }
    if takes(taken, "attention_mask"):
        masks = [np.ones(len(sample["input_ids"]), np.int64) for sample in samples]
        inputs.setdefault("attention_mask", padded(masks, length, 0))
    return inputs
