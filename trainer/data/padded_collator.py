"""Collator for texts of different lengths: it pads the tokens on the right and makes the attention mask.

A sample's label may be a single value (classification) or one per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...models.loss import IGNORE
from ...parallel.micro_batch import MicroBatch
from .base_collator import Collator, Sample, positions

INPUTS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
"""Arrays of a sample that are inputs of the model."""


@dataclass
class PaddedCollator(Collator):
    """Pads texts to the longest of a micro-batch. The target ``labels`` is each sample's ``label``, or its ``labels``,
    which stand beside the tokens and are padded like them."""

    block_size: int
    """Tokens of the longest sample; given by the engine from ``data.block_size``."""
    pad_token_id: int
    """Token id of padding positions; given by the engine from the tokenizer."""
    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    pad_to_multiple_of: int = 8
    """Padded lengths are multiples of this (but at most ``block_size``)."""
    inputs: frozenset[str] | None = None
    """Names of the inputs that the model takes; given by the engine. A model without an attention mask sees the
    padding, so all its texts are padded to ``block_size``."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        lengths = [len(sample["input_ids"]) for sample in samples]
        multiple = self.pad_to_multiple_of if takes(self.inputs, "attention_mask") else self.block_size
        length = max(min(-(-max(lengths) // multiple) * multiple, self.block_size), max(lengths))
        fill = {"input_ids": self.pad_token_id, "labels": IGNORE}
        inputs = {
            name: padded([sample[name] for sample in samples], length, fill.get(name, 0))
            for name in INPUTS
            if name in samples[0] and takes(self.inputs, name)
        }
        if takes(self.inputs, "attention_mask"):
            inputs.setdefault("attention_mask", padded([np.ones(size, np.int64) for size in lengths], length, 0))
        if "labels" in samples[0]:
            labels = padded([sample["labels"] for sample in samples], length, IGNORE)
        else:
            labels = torch.as_tensor(np.stack([np.asarray(sample["label"]) for sample in samples]))
        return MicroBatch(inputs, {"labels": labels}, positions(samples), sum(lengths))


def takes(inputs: frozenset[str] | None, name: str) -> bool:
    """Whether a model takes an input; one whose inputs are not known takes all."""
    return inputs is None or name in inputs


def padded(arrays: Sequence[Any], length: int, fill: float) -> Tensor:
    """Arrays that differ in their first dimension, in one tensor [arrays, length, ...], with ``fill`` behind each."""
    first = np.asarray(arrays[0])
    kind = np.int64 if np.issubdtype(first.dtype, np.integer) else first.dtype
    rows = np.full((len(arrays), length, *first.shape[1:]), fill, dtype=kind)
    for row, array in zip(rows, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(rows)
