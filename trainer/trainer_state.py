"""What the loop knows of itself (TrainerState) and what callbacks may ask of it (Control)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class TrainerState:
    """Where training stands. All of it is saved in a checkpoint, and equal on all ranks."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Samples consumed, over all ranks."""
    tokens: int = 0
    """Input tokens consumed, over all ranks, padding not counted."""
    best_metric: float | None = None
    """Best value so far of ``checkpoint.metric``."""
    best_step: int | None = None
    """Step of that best value."""
    data: dict[str, Any] = field(default_factory=dict)
    """Position of a streaming source; empty for indexed data, whose position follows from ``samples``."""
    batch: dict[str, int] = field(default_factory=dict)
    """``size``: samples of a step; ``step``, ``samples``: since when. See ``batch_since``."""
    made_of: dict[str, Any] = field(default_factory=dict)
    """Fingerprints of documents, tokenizer and weights, and the length of the run. See ``continuity.made_of``."""
    evaluation_due: bool = False
    """Set when a run had to leave before the evaluation of this step; a resume begins with it."""

    # Known from the recipe, not state: not saved.
    max_steps: int = 0
    """Steps that schedules and progress reckon with."""
    stop_at: int = 0
    """Step after which this run leaves; at most ``max_steps``."""
    train_size: int | None = None
    """Samples of one pass over the training data; None for a stream of unknown length."""

    @property
    def epoch(self) -> float | None:
        """Passes over the training data so far."""
        return self.samples / self.train_size if self.train_size else None

    def to_json(self) -> dict[str, Any]:
        saved = dataclasses.asdict(self)
        for name in ("max_steps", "stop_at", "train_size"):
            saved.pop(name)
        return saved


def batch_since(saved: Mapping[str, Any], size: int) -> dict[str, int]:
    """``TrainerState.batch`` of a run that goes on from ``saved`` with ``size`` samples a step: if they were others
    then, passes over the data end at another step than ``size`` alone would tell."""
    step = saved.get("step", 0)
    samples = saved.get("samples", step * size)
    then = saved.get("batch") or {"size": samples / step if step else size, "step": 0, "samples": 0}
    return {**then, "size": size} if then["size"] == size else {"size": size, "step": step, "samples": samples}


@dataclass
class Control:
    """Requests of callbacks to the loop, looked at after each step. Every rank acts on them together."""

    stop: bool = False
    """End training after this step."""
    save: bool = False
    """Write a checkpoint after this step."""
    evaluate: bool = False
    """Evaluate after this step."""
    log: bool = False
    """Write a training line for this step."""
    interrupted: bool = False
    """Leave before the end because of a signal or the wall-clock limit: save now, evaluate after the resume."""
    rollback: bool = False
    """Go back to the last checkpoint, and on with the samples that come next."""
    reason: str = ""
    """Why training was asked to stop; logged."""

    def request_stop(self, reason: str) -> None:
        self.stop, self.reason = True, reason

    def interrupt(self, reason: str) -> None:
        """Save and leave after this step; the same command goes on from there."""
        self.request_stop(reason)
        self.interrupted = True

    def clear(self) -> None:
        """Forget one step's requests; a request to stop stays."""
        self.save = self.evaluate = self.log = self.rollback = False
