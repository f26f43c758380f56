"""Compute the task's own metrics on the training batch for the logged metrics, such as the rewards of DPO.

In logged steps, they are computed from the same outputs as the loss, without gradient, and one small reduction adds the
sums of all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..parallel.micro_batch import MicroBatch
from ..parallel.strategy import LossFunction, Strategy, add_sums
from .tasks.task import Task, own_steps


class StepMetrics:
    """Sums of one step on this rank, for a task with ``step_metrics``."""

    def __init__(self, task: Task, strategy: Strategy) -> None:
        self.task, self.strategy = task, strategy
        self._totals: dict[str, Tensor] = {}
        self._counts = False

    def begin_step(self, logged: bool) -> None:
        """Begin with empty sums; they are only computed in steps that are ``logged``."""
        # A task's own step gives no outputs beside which sums could be computed.
        self._counts = logged and bool(self.task.step_metrics) and "step" not in own_steps(self.task)
        self._totals = {}

    def beside(self, loss: LossFunction) -> LossFunction:
        """A loss function like ``loss`` that also computes the sums."""
        if not self._counts:
            return loss

        def both(outputs: Any, micro: MicroBatch) -> Tensor:
            with torch.no_grad():
                add_sums(self._totals, self.task.evaluate(outputs, micro.targets))
            return loss(outputs, micro)

        return both

    def metrics(self) -> dict[str, float]:
        """Metrics of the global batch, those that it has; a collective call."""
        if not self._counts:
            return {}
        found = self.task.metrics(self.strategy.shared_sums(self._totals))
        return {name: found[name] for name in self.task.step_metrics if name in found}
