"""Load batches from an indexed data set: one data rank's share of each step.

After p consumed samples a step takes the global positions ``[p, p + G)``, in whatever epoch they are, so batches may
span two epochs and nothing is dropped. Data rank r of D takes the contiguous part r; joined in rank order, the shares
are the batch of a single rank. There is no state: a resume starts at another p, also with another G.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from ...errors import ComponentFailed, UserError
from ...parallel.strategy import MicroBatch, StepBatch
from ..interruption import SIGNALS
from .collator import Sample, without_labels
from .sample_order import EpochOrder

if TYPE_CHECKING:
    from torch.utils.data import Dataset

POSITIONS_AT_ONCE = 1024
"""Positions that are mapped in one call, so that its cost is spread over several steps."""


class Collator(Protocol):
    """The interface of collators: make a share of a step, or one micro-batch."""

    def __call__(self, samples: Sequence[Sample]) -> StepBatch: ...

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch: ...


class StepSampler(Sampler[list[int]]):
    """Dataset indices of one data rank's share, step by step."""

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

    def __iter__(self) -> Iterator[list[int]]:
        at_once = max(1, POSITIONS_AT_ONCE // self.share)
        for first in range(0, self.steps, at_once):
            steps = np.arange(first, min(first + at_once, self.steps), dtype=np.int64)
            starts = self.first + steps * self.global_batch_size
            yield from self.order(starts[:, None] + np.arange(self.share)).tolist()


def step_batches(
    dataset: Dataset[Sample],
    collator: Collator,
    order: EpochOrder,
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
        dataset,
        batch_sampler=sampler,
        collate_fn=partial(_collated_or_error, collator) if num_workers else collator,
        num_workers=num_workers,
        pin_memory=pin_memory and torch.accelerator.is_available(),
        generator=torch.Generator(),  # otherwise every start would draw from the global generator and change dropout
        **workers,
    )
    return iter(loader)


def _collated_or_error(collator: Collator, samples: Sequence[Sample]) -> StepBatch | Exception:
    """In a worker: an error that has a message of its own comes back whole, since torch would hand on a traceback."""
    try:
        return collator(samples)
    except (UserError, ComponentFailed) as error:
        return error


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
    collective; missing samples are filled up with samples whose labels are all -100.
    """
    size = len(dataset)  # type: ignore[arg-type]
    count = size if limit is None else min(limit, size)
    rounds = -(-count // (data_size * micro_batch_size))
    for number in range(rounds):
        first = (number * data_size + data_rank) * micro_batch_size
        wanted = range(first, min(first + micro_batch_size, count))
        samples = [dataset[index] for index in wanted]
        filler = [without_labels(dataset[0])] * (micro_batch_size - len(samples))
        yield collator.micro_batch(samples + filler)
