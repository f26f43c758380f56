"""Load the batches of one data-parallel rank, for training and evaluation, from a data set that is read by index.

After p samples, a step takes the positions p to p + G - 1 of the endless stream of samples, where G is the global batch
size. So a batch may span two epochs, and no sample is dropped. Each data rank takes one contiguous part of these
positions. There is no state to save: a resumed run starts at its own p, and may use another G.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from ...errors import ComponentFailed, Problem, UserError
from ...parallel.micro_batch import MicroBatch, StepBatch
from ..interruption import SIGNALS
from .base_collator import Collator, Sample, without_targets

_MIXES_DOCUMENTS = Problem(
    "collator",
    "gives no documents of packed rows, so that their documents would see each other",
    "derive it from trireme.trainer.data.collator.CausalLMCollator, or set data.packing=true or false",
)
POSITIONS_AT_ONCE = 1024
"""Positions that are mapped in one call, so that its cost is spread over several steps."""


@dataclass(frozen=True)
class Batcher:
    """Makes one data rank's share of a step from its samples, and counts what the loss is divided by."""

    collator: Collator
    count: Callable[[dict[str, Any]], int]
    """Number of labels in the targets of a micro-batch (``Task.count``)."""
    marked: Callable[[MicroBatch], MicroBatch] | None = None
    """Adds to a micro-batch the places in lanes that its rows continue (``lanes.Lanes.marked``); None without lanes."""

    def __call__(self, samples: Sequence[Sample]) -> StepBatch:
        micro_batches = self.collator(samples)
        if "documents" in samples[0] and any(micro.documents is None for micro in micro_batches):
            raise UserError(_MIXES_DOCUMENTS)
        return StepBatch(
            micro_batches=micro_batches if self.marked is None else [self.marked(micro) for micro in micro_batches],
            labels=sum(self.count(micro.targets) for micro in micro_batches),
            tokens=sum(micro.length for micro in micro_batches),
            samples=[int(sample["index"]) for sample in samples],
        )

    def or_error(self, samples: Sequence[Sample] | Exception) -> StepBatch | Exception:
        """Like a call, but return errors with a message for the user: torch would pass on only a worker's traceback."""
        try:
            return samples if isinstance(samples, Exception) else self(samples)
        except (UserError, ComponentFailed) as error:
            return error


class Positioned(Dataset[Sample]):
    """A data set whose samples are requested by (position, index), and contain both numbers."""

    def __init__(self, dataset: Dataset[Sample]) -> None:
        self.dataset = dataset

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> list[Sample]:
        indices = [index for _, index in places]
        several = getattr(self.dataset, "__getitems__", None)
        samples = several(indices) if several else [self.dataset[index] for index in indices]
        return [{**sample, "position": position} for sample, (position, _) in zip(samples, places, strict=True)]

    def __getitem__(self, place: tuple[int, int]) -> Sample:
        return self.__getitems__([place])[0]


class PositionedOrError(Positioned):
    """Like ``Positioned``, but return an error of the data set in place of samples, as ``Batcher.or_error`` does."""

    def __getitems__(self, places: Sequence[tuple[int, int]]) -> list[Sample] | Exception:  # type: ignore[override]
        try:
            return super().__getitems__(places)
        except (UserError, ComponentFailed) as error:
            return error


class StepSampler(Sampler[list[tuple[int, int]]]):
    """Positions and dataset indices of one data rank's share, step by step."""

    def __init__(
        self,
        order: Callable[[np.ndarray], np.ndarray],
        *,
        samples: int,
        steps: int,
        global_batch_size: int,
        data_rank: int,
        data_size: int,
    ) -> None:
        if global_batch_size % data_size:
            raise ValueError(
                f"global_batch_size={global_batch_size} does not divide over {data_size} data ranks; "
                f"use a multiple of {data_size}"
            )
        self.order = order
        self.steps = steps
        self.global_batch_size = global_batch_size
        self.share = global_batch_size // data_size
        self.first = samples + data_rank * self.share

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        at_once = max(1, POSITIONS_AT_ONCE // self.share)
        for first in range(0, self.steps, at_once):
            steps = np.arange(first, min(first + at_once, self.steps), dtype=np.int64)
            starts = self.first + steps * self.global_batch_size
            places = starts[:, None] + np.arange(self.share)
            for pair in zip(places.tolist(), self.order(places).tolist(), strict=True):
                yield list(zip(*pair, strict=True))


def step_batches(
    dataset: Dataset[Sample],
    batcher: Batcher,
    order: Callable[[np.ndarray], np.ndarray],
    *,
    samples: int,
    steps: int,
    global_batch_size: int,
    data_rank: int = 0,
    data_size: int = 1,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[StepBatch | Exception]:
    """This data rank's share of the next ``steps`` steps; an error of a worker stands for the batch that it made.

    Args:
        order: maps positions in the endless stream to indices of ``dataset``.
        samples: samples consumed so far, over all ranks and passes.
        dataset: gives samples by index (``__getitems__`` is used if it exists).
        num_workers: processes that load and collate ahead; 0 does it in this process.
        pin_memory: put batches in page-locked memory (ignored without an accelerator).
    """
    sampler = StepSampler(
        order,
        samples=samples,
        steps=steps,
        global_batch_size=global_batch_size,
        data_rank=data_rank,
        data_size=data_size,
    )
    workers: dict[str, Any] = {}
    if num_workers:
        workers = {"persistent_workers": True, "prefetch_factor": 4, "worker_init_fn": _leave_signals_to_the_rank}
    loader = DataLoader(
        PositionedOrError(dataset) if num_workers else Positioned(dataset),
        batch_sampler=sampler,
        collate_fn=batcher.or_error if num_workers else batcher,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.accelerator.is_available(),
        generator=torch.Generator(),  # otherwise every start would draw from the global generator and change dropout
        **workers,
    )
    return iter(loader)


def _leave_signals_to_the_rank(worker: int) -> None:
    """Ignore signals in a loader process: terminals, SLURM and torchrun signal groups of processes, but the rank needs
    its workers until it has saved, and then ends them itself (they also end if it dies)."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def evaluation_batches(
    dataset: Dataset[Sample],
    collator: Collator,
    *,
    limit: int | None = None,
    micro_batch_size: int,
    data_rank: int = 0,
    data_size: int = 1,
) -> Iterator[MicroBatch]:
    """The first ``limit`` samples in order, each on one data rank only.

    Every data rank gets equally many micro-batches of the same size, since a forward pass of a sharded model is a
    collective; missing samples are filled up with a sample that has no targets there.
    """
    size = len(dataset)  # type: ignore[arg-type]
    count = size if limit is None else min(limit, size)
    rounds = -(-count // (data_size * micro_batch_size))
    for number in range(rounds):
        first = (number * data_size + data_rank) * micro_batch_size
        wanted = range(first, min(first + micro_batch_size, count))
        samples = [dataset[index] for index in wanted]
        filler = [dataset[0]] * (micro_batch_size - len(samples))
        yield without_targets(collator.micro_batch(samples + filler), len(samples))
