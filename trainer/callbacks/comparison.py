"""Read a metric from an evaluation and decide whether it has improved, for callbacks such as early stopping."""

from __future__ import annotations

import math
from typing import Literal

from ...errors import Problem, UserError
from .callback import Metrics

Mode = Literal["min", "max"]


def watched(metrics: Metrics, name: str, field: str) -> float:
    """The value of metric ``name``.

    Args:
        metrics: an evaluation's metrics.
        name: name of the metric, such as ``eval_loss``.
        field: recipe key that names the metric, for the message.

    Raises:
        UserError: the evaluation did not give this metric.
    """
    if name in metrics:
        return float(metrics[name])
    there = ", ".join(key for key in metrics if key.startswith("eval_")) or "none"
    raise UserError(Problem(field, "the evaluation gives no such metric", f"choose one of: {there}", name))


def improves(value: float, best: float | None, mode: Mode, min_delta: float = 0.0) -> bool:
    """Whether ``value`` is better than ``best`` by more than ``min_delta``; NaN and infinity never are."""
    if not math.isfinite(value):
        return False
    if best is None:
        return True
    return value < best - min_delta if mode == "min" else value > best + min_delta
