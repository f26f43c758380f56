"""Check that a task's loss function returns the sum over labels, and not the mean.

The training step divides the sum by the number of labels in the global batch. A mean would be divided twice, so the
model would silently train too weakly. At the first batch, the loss of two copies of a sample is compared with the loss
of one. It is twice as large if the loss is a sum, and equal if it is a mean, whatever the model and the data. The check
costs the loss of three samples. If a task has a ``step`` of its own, which runs the model, all ranks run the check
together, without noise, before the first batch is trained on.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import Problem, UserError
from ..models.loss import IGNORE
from ..parallel.mesh import Mesh
from ..parallel.micro_batch import MicroBatch, StepBatch, map_tensors
from ..parallel.strategy import Strategy, whole_scalar
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
        _refuse_mean(self.task, self.method, self._mean, mesh)

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
        cut = _copies_of(micro, copies)
        found = getattr(self.task, self.method)(map_tensors(outputs, cut), map_tensors(micro.targets, cut))
        return whole_scalar(found["loss"] if self.method == "evaluate" else found)


def check_own_step(task: Task, strategy: Strategy, batch: StepBatch) -> None:
    """Refuse a mean that the task's own ``step`` gives. A collective call: every rank makes two steps.

    Raises:
        UserError: the loss is a mean; raised on all ranks.
    """
    micro = max(batch.micro_batches, key=lambda micro: task.count(micro.targets)).to(strategy.mesh.device)
    model, found = strategy.inference_model(), []
    strategy.set_training(False)
    for copies in (1, 2):
        cut = _copies_of(micro, copies)
        inputs, targets = map_tensors(micro.inputs, cut), map_tensors(micro.targets, cut)
        with torch.no_grad(), strategy.inference_context():
            found.append(float(whole_scalar(task.step(model, inputs, targets))))
    strategy.set_training(True)
    strategy.free_gathered()
    once, twice = found
    is_mean = math.isfinite(once) and math.isfinite(twice) and once != 0 and abs(twice / once - 1) < 0.1
    _refuse_mean(task, "step", is_mean, strategy.mesh)


def _refuse_mean(task: Task, method: str, is_mean: bool, mesh: Mesh) -> None:
    if mesh.any_flags([is_mean])[0]:
        task = getattr(task, "task", task)  # the recipe's, inside of a ``CheckedTask``
        name = f"{type(task).__module__}.{type(task).__qualname__}"
        why = f"{name}.{method} returns a mean: the loss of two copies of a sample is that of one"
        fix = 'return a sum (reduction="sum"); it is divided by the labels of the global batch afterwards'
        raise UserError(Problem("task", why, fix))


def _copies_of(micro: MicroBatch, copies: int) -> Callable[[Tensor], Tensor]:
    """A function that makes ``copies`` of the sample with the most labels, of a tensor that has its rows."""
    rows, size = micro.rows, micro.per_sample
    first = _most_labels(micro) // size * size

    def cut(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != rows:
            return tensor
        return torch.cat([tensor.narrow(0, first, size)] * copies)

    return cut


def _gpus(micro: MicroBatch) -> list[torch.device]:
    """The GPU whose generator the loss may draw from; none on the CPU."""
    return [micro.samples.device] if micro.samples.is_cuda else []


def _most_labels(micro: MicroBatch) -> int:
    """Index of the row with the most labels."""
    labels = micro.targets.get("labels")
    if not isinstance(labels, Tensor) or labels.dim() < 2:
        return 0
    return int((labels != IGNORE).flatten(1).sum(1).argmax())
