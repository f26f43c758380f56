"""``StepPadding``, a base class of text collators that can pad all micro-batches of a training step to one length.

Pipeline parallelism needs equal lengths within a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .base_collator import Collator


@dataclass
class StepPadding(Collator):
    """A collator with these options."""

    block_size: int
    """Tokens of the longest text; given by the engine from ``data.block_size``."""
    pad_token_id: int
    """Token id of padding positions; given by the engine from the tokenizer."""
    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    pad_to_multiple_of: int = 8
    """Padded lengths are multiples of this (but at most ``block_size``); matrix units are fastest at multiples of 8."""
    pad_step: bool = True
    """Pad all micro-batches of a step to the same length, which pipeline stages need; false pads each on its own."""

    def __post_init__(self) -> None:
        for name in ("block_size", "micro_batch_size", "pad_to_multiple_of"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name}={value} is below 1; set it to at least 1")

    def padded(self, lengths: Sequence[int]) -> tuple[int, bool]:
        """Length to which texts of these lengths (tokens) are padded, and whether any of them is shorter.

        Raises:
            ValueError: one is longer than ``block_size``.
        """
        longest, multiple = max(lengths), self.pad_to_multiple_of
        if longest > self.block_size:
            raise ValueError(
                f"a sample of {longest} tokens exceeds block_size={self.block_size}; cut samples in the data set"
            )
        length = min(-(-longest // multiple) * multiple, self.block_size)
        return length, min(lengths) < length
