"""Compute the training loss of each source of a data mixture separately, for the logged metrics.

In logged steps, these losses are computed from the same outputs as the training loss, without gradient, and one small
reduction adds the sums of all ranks. Their mean, weighted by each source's number of labels, is the logged training
loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..parallel.mesh import Mesh
from ..parallel.micro_batch import MicroBatch, map_tensors
from ..parallel.strategy import LossFunction, whole_scalar
from .tasks.task import Task, own_steps

if TYPE_CHECKING:
    from .data.mixture import Mixture


class SourceLosses:
    """Sums of losses and labels by source, over the micro-batches of one step on this rank."""

    def __init__(self, task: Task, mixture: Mixture | None, device: torch.device) -> None:
        # The samples of a coupled loss see each other, so none of it belongs to one source; a task's own step gives the
        # loss of all its samples together.
        alone = not task.coupled and "step" not in own_steps(task)
        self.task, self.mixture = task, mixture if alone else None
        names = self.mixture.names if self.mixture is not None else []
        self._sums = torch.zeros(2, len(names), dtype=torch.float64, device=device)  # losses, labels
        self._counts = False

    def begin_step(self, logged: bool) -> None:
        """Begin with empty sums; losses are only computed in steps that are ``logged``."""
        self._counts = logged and self.mixture is not None
        self._sums.zero_()

    def beside(self, loss: LossFunction) -> LossFunction:
        """A loss function like ``loss`` that also computes the losses by source."""
        if not self._counts:
            return loss

        def both(outputs: Any, micro: MicroBatch) -> Tensor:
            self._add(outputs, micro)
            return loss(outputs, micro)

        return both

    def metrics(self, mesh: Mesh) -> dict[str, float]:
        """``loss/<source>`` of the global batch, without sources that have no label in it; a collective call."""
        if not self._counts or self.mixture is None:
            return {}
        losses, labels = mesh.sum_tensor(self._sums.clone()).tolist()
        parts = zip(self.mixture.names, losses, labels, strict=True)
        return {f"loss/{name}": loss / count for name, loss, count in parts if count}

    def _add(self, outputs: Any, micro: MicroBatch) -> None:
        rows = micro.rows
        gpus = [micro.samples.device] if micro.samples.is_cuda else []
        with torch.no_grad(), torch.random.fork_rng(gpus):  # a loss may draw numbers, which must not change others
            for source, first, count in self._runs(micro.samples.tolist()):

                def cut(tensor: Tensor, first: int = first, count: int = count) -> Tensor:
                    of_samples = tensor.dim() > 0 and tensor.shape[0] == rows
                    return tensor.narrow(0, first, count) if of_samples else tensor

                targets = map_tensors(micro.targets, cut)
                self._sums[0, source] += whole_scalar(self.task.loss(map_tensors(outputs, cut), targets))
                self._sums[1, source] += self.task.count(targets)

    def _runs(self, positions: list[int]) -> Iterator[tuple[int, int, int]]:
        """Source, first row and number of rows of each run of samples that are of one source."""
        assert self.mixture is not None
        first = 0
        for source, run in groupby(self.mixture.sources_of(positions)):
            count = len(list(run))
            yield source, first, count
            first += count
