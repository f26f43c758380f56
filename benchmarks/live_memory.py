"""Count the bytes that a rank's tensors hold, divided into parameters, gradients, optimizer state and other tensors.
Also count the state that DeepSpeed keeps on disk for the rank.

``communication.py`` uses it. Memory that several tensors share is counted once. The other tensors are communication
buffers, DeepSpeed's copies for offload, and batches.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from trireme.parallel.held_memory import STATES, memory_of, state_tensors
from trireme.parallel.micro_batch import StepBatch
from trireme.parallel.strategy import LossFunction, Strategy

OTHER = "other"
Census = dict[str, float]
"""Bytes by kind of state."""


class Watched(list):
    """A list of micro-batches that calls ``look`` between two of them."""

    def __init__(self, items: Iterable[Any], look: Callable[[], None]) -> None:
        super().__init__(items)
        self.look = look

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(super().__iter__()):
            if number:
                self.look()
            yield item


def most_held(strategy: Strategy, batch: StepBatch, loss: LossFunction) -> Census:
    """Take a census after each micro-batch, and return the one with the most state.

    Micro-batches run twice, so that there are at least two. ZeRO-1 holds most before the last micro-batch, since it
    keeps whole gradients until then; other engines hold most after it. A pipeline takes all micro-batches at once, so
    there is one census, at the end.
    """
    seen: list[Census] = []
    at_once = strategy.mesh.degrees.pipeline > 1
    micro_batches = batch.micro_batches if at_once else [*batch.micro_batches, *batch.micro_batches]
    watched = micro_batches if at_once else Watched(micro_batches, lambda: seen.append(census(strategy)))
    strategy.forward_backward(replace(batch, micro_batches=watched), loss)
    seen.append(census(strategy))
    return max(seen, key=lambda found: sum(found[state] for state in STATES))


def census(strategy: Strategy) -> Census:
    """Bytes that this rank holds now, by kind of state."""
    counted: set[int] = set()
    held: Census = {}
    for kind, tensors in (*zip(STATES, state_tensors(strategy), strict=True), (OTHER, _live())):
        memory = {place: size for place, size in memory_of(tensors).items() if place not in counted}
        held[kind] = sum(memory.values())
        counted |= set(memory)
    return held


def swapped(folder: Path, rank: int) -> int:
    """Bytes of optimizer state and fp32 weights that DeepSpeed keeps on disk for a rank."""
    files = folder.glob(f"zero_stage_3/optimizer/rank{rank}/*.swp")
    return sum(path.stat().st_size for path in files if "_gradient_" not in path.name)


def _live() -> list[Any]:
    """Every tensor that Python's garbage collector tracks."""
    gc.collect()
    return [item for item in gc.get_objects() if issubclass(type(item), Tensor)]
