"""Cut a long text into parallel lanes (``data.packing=lanes``), so that each training step continues where the step
before stopped.

The text is cut into as many contiguous parts (lanes) as a step has samples. Sample k of each step is the next block of
lane k. So a model with a memory (Transformer-XL) reads every lane as one long text, for any number of ranks and any
micro-batch size. An evaluation cuts its set into as many lanes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from torch.utils.data import Dataset

from ...errors import Problem
from ...parallel.micro_batch import MicroBatch, Place
from .base_collator import Collator, Sample, without_targets
from .token_files import Column, PackedBlocks


class LaneBlocks(PackedBlocks):
    """Blocks of consecutive tokens, each with the token that follows it, which its last token predicts."""

    def __init__(self, tokens: Column, block_size: int) -> None:
        super().__init__(tokens, block_size)
        self.blocks = max(len(tokens) - 1, 0) // block_size

    def __len__(self) -> int:
        return self.blocks

    def __getitem__(self, index: int) -> Sample:
        end = (index + 1) * self.block_size
        return {**super().__getitem__(index), "next_token": int(self.tokens.cut(end, end + 1)[0])}


@dataclass(frozen=True)
class Lanes:
    """Lanes of one length, and the order in which their blocks are trained on."""

    count: int
    """Lanes: the samples of a step."""
    length: int
    """Blocks of each lane."""

    @property
    def size(self) -> int:
        """Blocks of one pass."""
        return self.count * self.length

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Indices of blocks (int64) at positions in the endless stream (int64, any shape)."""
        rounds, lanes = np.divmod(np.asarray(positions, np.int64), self.count)
        return lanes * self.length + rounds % self.length

    def marked(self, micro: MicroBatch) -> MicroBatch:
        """A micro-batch of training with the place of each row in its lane; a lane begins anew with every pass."""
        return replace(micro, lanes=tuple(self._place(position) for position in micro.samples.tolist()))

    def _place(self, position: int) -> Place:
        rounds, lane = divmod(position, self.count)
        return Place(lane, position, position - self.count if rounds % self.length else -1)


def too_few_blocks(blocks: int, lanes: int, block_size: int) -> Problem:
    """The refusal of a text that is too short for its lanes."""
    why = f"cuts the text into {lanes} lanes, one for each sample of a step, but it has only {blocks} blocks"
    fix = f"set trainer.global_batch_size to at most {blocks}, a smaller data.block_size than {block_size}, or give "
    return Problem("data.packing", why, f"{fix}more text", "lanes")


def evaluation_lanes(
    dataset: Dataset[Sample],
    collator: Collator,
    *,
    lanes: int,
    limit: int | None = None,
    micro_batch_size: int,
    data_rank: int = 0,
    data_size: int = 1,
) -> Iterator[MicroBatch]:
    """The first ``limit`` samples in lanes, each sample on one data rank only.

    Every data rank gets equally many micro-batches of the same size; missing samples are filled up with a sample that
    has no targets there.
    """
    size = len(dataset)  # type: ignore[arg-type]
    count = size if limit is None else min(limit, size)
    length = -(-count // lanes)
    share = -(-lanes // data_size)
    mine = range(data_rank * share, min((data_rank + 1) * share, lanes))
    for step in range(length):
        there = [lane for lane in mine if lane * length + step < count]
        for first in range(0, share, micro_batch_size):
            own = there[first : first + micro_batch_size]
            places = [_evaluated(lane, lane * length + step, step) for lane in own]
            missing = micro_batch_size - len(own)
            samples = [dataset[place.position] for place in places] + [dataset[0]] * missing
            micro = without_targets(collator.micro_batch(samples), len(own))
            yield replace(micro, lanes=(*places, *[Place(-1, -1, -1)] * missing))


def _evaluated(lane: int, index: int, step: int) -> Place:
    return Place(lane, index, index - 1 if step else -1)
