"""A pipeline stage that can record when each forward and backward pass begins and ends, for a timeline of the step."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch.distributed.pipelining import PipelineStage


class Action(NamedTuple):
    """``kind``: F forward, B whole backward, I gradients of inputs, W gradients of weights. Times are seconds since the
    epoch, which ranks of several machines share as far as their clocks agree."""

    kind: str
    stage: int
    micro_batch: int
    began: float
    ended: float


class ActionTimes:
    """Records the actions of a rank's stages while it is switched on. On a GPU it waits for every action, so a recorded
    step takes longer than others."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.on = device, False
        self.actions: list[Action] = []

    def begin(self) -> None:
        self.on, self.actions = True, []

    def end(self) -> list[Action]:
        """Stop recording; returns the actions since ``begin``."""
        self.on = False
        return self.actions

    @contextmanager
    def noted(self, kind: str, stage: int, micro_batch: int) -> Iterator[None]:
        """The context in which one action is recorded."""
        if not self.on:
            yield
            return
        began = self._now()
        yield
        self.actions.append(Action(kind, stage, micro_batch, began, self._now()))

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.time()


class TimedStage(PipelineStage):
    """torch's stage, which records its actions in ``times``."""

    times: ActionTimes

    def forward_one_chunk(self, fwd_chunk_id: int, *args: Any, **kwargs: Any) -> Any:
        with self.times.noted("F", self.stage_index, fwd_chunk_id):
            return super().forward_one_chunk(fwd_chunk_id, *args, **kwargs)

    def backward_one_chunk(
        self, bwd_chunk_id: int, loss: Any = None, full_backward: bool = True, last_backward: bool = False
    ) -> Any:
        with self.times.noted("B" if full_backward else "I", self.stage_index, bwd_chunk_id):
            return super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> Any:
        with self.times.noted("W", self.stage_index, bwd_chunk_id):
            return super().backward_weight_one_chunk(bwd_chunk_id, last_backward)
