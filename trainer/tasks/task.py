"""The base class of tasks. A task chooses the model's head, and computes its loss and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

    from ...parallel.strategy import MicroBatch

Sums = dict[str, "Tensor"]
"""Scalar sums of a micro-batch, which are added over micro-batches and ranks and then turned into metrics."""


class Task(ABC):
    """Base of all tasks. Methods return sums, since a mean would depend on how a batch is cut into micro-batches."""

    head: ClassVar[str]
    """Key of the model factory in ``models/build_model.py``."""
    metric_names: ClassVar[tuple[str, ...] | None] = None
    """Names that ``metrics`` returns, so that unknown ones are refused before launch; None if they are not known."""

    @abstractmethod
    def loss(self, outputs: Any, batch: MicroBatch) -> Tensor:
        """Sum of the losses of all labels of a micro-batch, as an fp32 scalar."""

    @abstractmethod
    def evaluate(self, outputs: Any, batch: MicroBatch) -> Sums:
        """Sums that ``metrics`` needs."""

    @abstractmethod
    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        """Metrics from the sums over the whole evaluation set, ``loss`` among them."""
