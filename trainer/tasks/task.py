"""A task: the head a model gets, the loss it is trained with, and the metrics it is judged by."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from ...parallel.strategy import MicroBatch

Sums = dict[str, "Tensor"]
"""Metric sums of a micro-batch, scalars: added over micro-batches and ranks, then turned into metrics."""


class Task(ABC):
    """Sums only: a mean over a micro-batch would depend on how the batch is cut."""

    head: ClassVar[str]
    """Key of the model factory in ``models/build_model.py``."""
    metric_names: ClassVar[tuple[str, ...] | None] = None
    """What ``metrics`` gives, so that a metric nobody computes is refused before launch; None: that is not known."""

    @abstractmethod
    def loss(self, outputs: Any, batch: MicroBatch) -> Tensor:
        """Sum of the label losses of a micro-batch, fp32 scalar."""

    @abstractmethod
    def evaluate(self, outputs: Any, batch: MicroBatch) -> Sums:
        """Sums that ``metrics`` needs."""

    @abstractmethod
    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics from the sums over the whole evaluation set; ``loss`` is among them."""
