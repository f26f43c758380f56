"""Check that a task's losses are sums: a mean would silently train too weakly, by a factor of the number of labels.

At the first batch, the loss of two copies of a sample is compared with the loss of one. It is twice as large if the
loss is a sum, and equal if it is a mean, whatever the model and the data. The check costs the loss of three samples.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import Problem, UserError
from ..models.loss import IGNORE
from ..parallel.mesh import Mesh
from ..parallel.micro_batch import MicroBatch, map_tensors
from .tasks.task import Task

TRIES = 8
"""Most micro-batches to examine: one whose sample has no labels tells nothing, since its loss is zero."""


class SumCheck:
    """Calls ``task.loss``, and checks it in the first micro-batches of this rank.

    Args:
        method: ``loss``, or ``evaluate``, whose sum ``loss`` is checked.
    """

    def __init__(self, task: Task, method: Literal["loss", "evaluate"] = "loss") -> None:
        self.task, self.method = task, method
        self._tries = TRIES
        self._mean = False
        self._told = False

    def __call__(self, outputs: Any, micro: MicroBatch) -> Tensor:
        self.look(outputs, micro)
        return self.task.loss(outputs, micro.targets)

    def refuse_mean(self, mesh: Mesh) -> None:
        """Refuse a mean, once, after the first batch or evaluation. A collective call, since only the last pipeline
        stage has a loss.

        Raises:
            UserError: the loss is a mean; raised on all ranks.
        """
        if self._told:
            return
        self._told = True
        if mesh.any_flags([self._mean])[0]:
            task = getattr(self.task, "task", self.task)  # the recipe's, inside of a ``CheckedTask``
            name = f"{type(task).__module__}.{type(task).__qualname__}"
            why = f"{name}.{self.method} returns a mean: the loss of two copies of a sample is that of one"
            fix = 'return a sum (reduction="sum"); it is divided by the labels of the global batch afterwards'
            raise UserError(Problem("task", why, fix))

    def look(self, outputs: Any, micro: MicroBatch) -> None:
        """Check the loss of a micro-batch, unless an earlier one has told enough."""
        if not self._tries:
            return
        self._tries -= 1
        try:
            with torch.no_grad(), torch.random.fork_rng(_gpus(micro)):
                once, twice = (float(self._loss_of_copies(outputs, micro, copies)) for copies in (1, 2))
        except Exception:  # outputs may have a form that cannot be cut; a faulty loss fails again right after this
            self._tries = 0
            return
        if math.isfinite(once) and math.isfinite(twice) and once != 0:
            self._tries, self._mean = 0, abs(twice / once - 1) < 0.1

    def _loss_of_copies(self, outputs: Any, micro: MicroBatch, copies: int) -> Tensor:
        batch, size = micro.rows, micro.per_sample
        first = _most_labels(micro) // size * size

        def cut(tensor: Tensor) -> Tensor:
            if tensor.dim() == 0 or tensor.shape[0] != batch:
                return tensor
            return torch.cat([tensor.narrow(0, first, size)] * copies)

        found = getattr(self.task, self.method)(map_tensors(outputs, cut), map_tensors(micro.targets, cut))
        loss = found["loss"] if self.method == "evaluate" else found
        return loss.full_tensor() if hasattr(loss, "full_tensor") else loss  # type: ignore[operator]


def _gpus(micro: MicroBatch) -> list[torch.device]:
    """The GPU whose generator the loss may draw from; none on the CPU."""
    return [micro.samples.device] if micro.samples.is_cuda else []


def _most_labels(micro: MicroBatch) -> int:
    """Index of the row with the most labels."""
    labels = micro.targets.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() < 2:
        return 0
    return int((labels != IGNORE).flatten(1).sum(1).argmax())
