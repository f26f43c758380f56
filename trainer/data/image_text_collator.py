"""Collate pictures and their captions: pictures stacked and varied in training steps, the tokens of captions padded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...parallel.micro_batch import MicroBatch
from .base_collator import Sample, positions
from .image_collator import ImageCollator
from .padded_collator import INPUTS, padded


@dataclass
class ImageTextCollator(ImageCollator):
    """Makes micro-batches of pairs; every row that is a pair counts one label."""

    pad_token_id: int = 0
    """Token id of padding positions; given by the engine from the tokenizer."""
    block_size: int = 64
    """Every caption is padded to this length, so that all ranks see one shape; given by the engine from
    ``data.block_size``."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        fill = {"input_ids": self.pad_token_id}
        inputs = {
            name: padded([sample[name] for sample in samples], self.block_size, fill.get(name, 0))
            for name in INPUTS
            if name in samples[0]
        }
        masks = [np.ones(len(sample["input_ids"]), np.int64) for sample in samples]
        inputs.setdefault("attention_mask", padded(masks, self.block_size, 0))
        inputs["pixel_values"] = torch.from_numpy(np.stack([sample["pixel_values"] for sample in samples]))
        paired = torch.ones(len(samples), dtype=torch.bool)
        return MicroBatch(inputs, {"paired": paired}, positions(samples), len(samples))
