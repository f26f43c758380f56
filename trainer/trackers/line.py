"""Data types passed to trackers: ``Line`` (the metrics of one step, under the names that trackers show) and ``Status``
(how a run has ended).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["finished", "interrupted", "failed"]
"""``interrupted``: a signal or the wall-clock limit has ended the run early; the same command goes on with it."""


@dataclass(frozen=True)
class Line:
    """The numbers of one training line, evaluation, or measurement of the machine."""

    step: int
    time: float
    """Seconds since the epoch."""
    numbers: dict[str, float]
    """Values by tag, such as ``train/loss``, ``eval/loss`` or ``system/cpu_percent``."""


def line_of(step: int, time: float, metrics: Mapping[str, Any]) -> Line:
    """The line of a run's metrics; values that are no numbers (texts, flags, None) are left out."""
    numbers = {tag(name): float(value) for name, value in metrics.items() if type(value) in (int, float)}
    numbers.pop("train/step", None)
    return Line(step, time, numbers)


def tag(name: str) -> str:
    """The tag of a metric: ``eval/loss`` of ``eval_loss``, ``train/lr`` of ``lr``."""
    if name.startswith(("system/", "energy/")):
        return name
    return f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"


def kind_of(metrics: Mapping[str, Any]) -> str:
    """``eval`` for the line of an evaluation, else ``train``."""
    return "eval" if any(name.startswith("eval_") for name in metrics) else "train"
