"""Make samples from a stream of documents (blocks of tokens, or rows of packed documents), shuffle them in windows, and
divide them among data-parallel ranks.

A resumed run needs two values: the position in the source at which the current window began, and the number of samples
already used from this window. Tokens that were read but not yet used are not saved; their documents are read again.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Protocol

import numpy as np
import torch

from ...errors import Problem, UserError
from ...parallel.micro_batch import StepBatch
from .base_collator import Sample
from .corpus import TrainBatches
from .data_config import DataConfig
from .document_bins import DocumentBins
from .loader import Batcher
from .packed_rows import packed
from .sample_order import permute
from .stream_reader import BlockReader

log = logging.getLogger("trireme.data")


class ShuffledBlocks(Iterator[Sample]):
    """Endless samples: windows of blocks, each in an order that follows from (seed, epoch, window)."""

    def __init__(
        self,
        open_reader: Callable[[dict[str, Any] | None], BlockReader],
        config: DataConfig,
        seed: int,
        state: dict[str, Any] | None = None,
    ) -> None:
        self.open_reader, self.config, self.seed = open_reader, config, seed
        self.epoch, self.window, self.offset = 0, 0, 0
        self.samples: list[Sample] = []
        if not state:
            self.reader = open_reader(None)
            self.start = self.reader.position()
            return
        self._check(state)
        self.epoch, self.window, self.offset = state["epoch"], state["window"], state["offset"]
        self.reader = open_reader(state["start"])
        self._fill()
        if self.offset > len(self.samples):
            raise UserError(
                Problem(
                    "data.source",
                    "is shorter than it was when the checkpoint was written",
                    "give the same documents to resume, or start a new run",
                )
            )

    def _check(self, state: dict[str, Any]) -> None:
        problems = [
            Problem(
                f"data.{name}",
                f"the checkpoint's stream was cut with {state[name]}",
                f"set data.{name}={state[name]} to resume, or start a new run",
                getattr(self.config, name),
            )
            for name in _CUT
            if state.get(name, getattr(self.config, name)) != getattr(self.config, name)
        ]
        if problems:
            raise UserError(*problems)

    def state(self) -> dict[str, Any]:
        """Position of the next sample, as JSON."""
        return {
            "epoch": self.epoch,
            "window": self.window,
            "offset": self.offset,
            "start": self.start,
            **{name: getattr(self.config, name) for name in _CUT},
        }

    def __next__(self) -> Sample:
        if self.offset == len(self.samples):
            self._advance()
        self.offset += 1
        return self.samples[self.offset - 1]

    def _advance(self) -> None:
        """Fill the next window; at the end of the stream begin the next epoch (its last few tokens are dropped)."""
        if self.samples:
            self.window += 1
        self.offset = 0
        if self._fill():
            return
        if self.window == 0:
            raise UserError(
                Problem(
                    "data.block_size",
                    "the whole stream gives fewer tokens than one block",
                    "set a smaller data.block_size, or give more text",
                    self.config.block_size,
                )
            )
        self.epoch, self.window = self.epoch + 1, 0
        self.reader = self.open_reader(None)
        self._fill()

    def _fill(self) -> int:
        self.start = self.reader.position()
        blocks = next_rows(self.reader, self.config, self.config.shuffle_window, (self.seed, self.epoch, self.window))
        if self.epoch == 0 and (self.window == 0 or not blocks):  # early, and again at the end of the first pass
            for line in self.reader.left_out():
                log.info("so far, %s" if blocks else "%s", line)
        order = np.arange(len(blocks))
        if self.config.shuffle:
            order = permute(order, max(len(blocks), 1), self.seed, self.epoch, self.window)
        # Bins of one window are at most twice as many as full rows, since any two neighbours fill more than one.
        most = self.config.shuffle_window * 2 + 1 if self.config.packing == "bins" else self.config.shuffle_window
        first, begin = self.window * most, (self.epoch << 48) + (self.window << 26)
        self.samples = [_numbered(blocks[place], first + int(place), begin) for place in order]
        return len(blocks)


def _numbered(row: Sample, index: int, begin: int) -> Sample:
    """``row`` with its index, and the numbers of its documents counted from ``begin``."""
    if "documents" in row:
        row = {**row, "documents": row["documents"] + begin}
    return {**row, "index": index}


def next_rows(reader: BlockReader, config: DataConfig, count: int, key: tuple[int, int, int]) -> list[Sample]:
    """The next rows of a stream, whose documents are numbered from 0; none at its end.

    Args:
        count: how many rows. Bins are made of the documents that hold as many tokens, so there are some more, and the
            last ones of the stream may be fewer.
        key: (seed, epoch, window), by which documents of one length are drawn.
    """
    if config.packing != "bins":
        rows = list(islice(reader, count))
        numbers = np.cumsum([0, *(len(row) for row in rows)])
        if config.packing != "separate_blocks":
            return [{"input_ids": np.concatenate(row)} for row in rows]
        return [packed(row, first + np.arange(len(row))) for row, first in zip(rows, numbers[:-1], strict=True)]
    documents: list[np.ndarray] = []
    tokens = 0
    while tokens < count * config.block_size and (row := next(reader, None)) is not None:
        documents, tokens = [*documents, *row], tokens + sum(map(len, row))
    lengths = np.array([len(document) for document in documents], np.int64)
    bins = DocumentBins(lengths, config.block_size, _one_number(key), config.shuffle)
    chosen = (bins(number)[0] for number in range(len(bins)))
    return [packed([documents[piece] for piece in each.tolist()], each) for each in chosen]


def _one_number(key: tuple[int, ...]) -> int:
    """A hash of a key of several numbers, as one number."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=7).digest(), "little")


_CUT = ("block_size", "shuffle_window", "packing", "overflow", "shuffle")


class Stream(Iterator[Sample], Protocol):
    """Endless samples with a position."""

    def state(self) -> dict[str, Any]:
        """Position of the next sample, as JSON."""
        ...


class StreamBatches(TrainBatches):
    """One data rank's share of each step of a stream."""

    def __init__(
        self,
        samples: Stream,
        batcher: Batcher,
        *,
        first: int,
        steps: int,
        global_batch_size: int,
        data_rank: int = 0,
        data_size: int = 1,
    ) -> None:
        if global_batch_size % data_size:
            raise ValueError(
                f"global_batch_size={global_batch_size} does not divide over {data_size} data ranks; "
                f"use a multiple of {data_size}"
            )
        share = global_batch_size // data_size
        self.samples, self.batcher, self.position, self.steps_left = samples, batcher, first, steps
        self.global_batch_size = global_batch_size
        self.mine = slice(data_rank * share, (data_rank + 1) * share)

    def __next__(self) -> StepBatch:
        if self.steps_left <= 0:
            raise StopIteration
        self.steps_left -= 1
        samples = [
            {**sample, "position": self.position + place}
            for place, sample in enumerate(islice(self.samples, self.global_batch_size))
        ]
        self.position += self.global_batch_size
        batch = self.batcher(samples[self.mine])
        return batch.pin_memory() if torch.accelerator.is_available() else batch

    def state(self) -> dict[str, Any]:
        return self.samples.state()
