"""``TrainerState`` (step, samples and other progress of training) and ``Control`` (requests of callbacks to the loop).

Callbacks read the state; they may only set the best metric and its step. They make requests by setting fields of the
control. Its fields are fixed, so that a misspelt request (``control.should_save``) raises an error and is not ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

OF_CALLBACKS = ("best_metric", "best_step")
"""Fields of the state that callbacks may set."""
ELSEWHERE = {"should_training_stop": "stop", "should_epoch_stop": "end_pass"} | {
    f"should_{name}": name for name in ("save", "evaluate", "log")
}
"""Requests of transformers' callbacks -> fields of ``Control``."""


class NotTheirs(AttributeError):
    """A callback has set what it may not set; ``component_errors`` names the callback."""

    def __init__(self, what: str, why: str, fix: str) -> None:
        self.what, self.why, self.fix = what, why, fix
        super().__init__(f"{what}: {why}; {fix}")


@dataclass
class TrainerState:
    """The state of training, equal on all ranks and saved in checkpoints."""

    step: int = 0
    """Optimizer steps done."""
    samples: int = 0
    """Samples consumed, over all ranks: the position in the data."""
    skipped: int = 0
    """Number of ``samples`` that were not trained on, because a callback ended their pass over the data."""
    tokens: int = 0
    """Input tokens consumed, over all ranks, without padding."""
    best_metric: float | None = None
    """Best value so far of ``checkpoint.metric``."""
    best_step: int | None = None
    """Step of the best value of ``checkpoint.metric``."""
    data: dict[str, Any] = field(default_factory=dict)
    """Position of a streaming source; empty for indexed data, whose position follows from ``samples``."""
    batch: dict[str, int] = field(default_factory=dict)
    """``size``: samples of a step; ``step``, ``samples``: position since which steps have this size."""
    made_of: dict[str, Any] = field(default_factory=dict)
    """Fingerprints of documents, tokenizer and weights, and the length of the run. See ``continuity.made_of``."""
    evaluation_due: bool = False
    """Whether a run had to stop before the evaluation of this step; a resume then begins with the evaluation."""

    # The fields below follow from the recipe and are not saved.
    max_steps: int = 0
    """Optimizer steps of the whole run, on which schedules and progress are based."""
    stop_at: int = 0
    """Step after which this run stops; at most ``max_steps``."""
    train_size: int | None = None
    """Samples of one pass over the training data; None for a stream of unknown length."""

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("_read_only") and name not in OF_CALLBACKS:
            fix = "keep values of your own on the callback (self.name), and save them by state_dict"
            if hasattr(self, name):
                fix = f"leave it to the run, make requests by control; {fix}"
            raise NotTheirs(f"sets state.{name}", "callbacks only read it", fix)
        super().__setattr__(name, value)

    @contextmanager
    def read_only(self, locked: bool = True) -> Iterator[None]:
        """Context in which only ``OF_CALLBACKS`` can be set; with ``locked`` false, the engine may set all again."""
        before = self.__dict__.get("_read_only", False)
        self.__dict__["_read_only"] = locked
        try:
            yield
        finally:
            self.__dict__["_read_only"] = before

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
    """``TrainerState.batch`` of a run that resumes from ``saved`` with ``size`` samples per step. If the size has
    changed, passes over the data end at other steps than ``size`` alone would give."""
    step = saved.get("step", 0)
    samples = saved.get("samples", step * size)
    then = saved.get("batch") or {"size": samples / step if step else size, "step": 0, "samples": 0}
    return {**then, "size": size} if then["size"] == size else {"size": size, "step": step, "samples": samples}


@dataclass
class Control:
    """Requests of callbacks to the loop, which all ranks act on together after each step."""

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
    end_pass: bool = False
    """Leave out the rest of this pass over the data, and go on with the next one."""
    rollback: bool = False
    """Go back to the last checkpoint, and train on with the next samples."""
    prune: bool = False
    """End this run after this step for good: no last evaluation, no last checkpoint (``trireme search``)."""
    reason: str = ""
    """Reason of the request to stop, which is logged."""

    def __setattr__(self, name: str, value: Any) -> None:
        names = [each.name for each in dataclasses.fields(self)]
        if name not in names:
            meant = ELSEWHERE.get(name)
            fix = f"write control.{meant} = True" if meant else f"write one of {', '.join(names)}"
            raise NotTheirs(f"sets control.{name}", "no run knows this request", fix)
        value = value.item() if hasattr(value, "item") else value  # a comparison of tensors or numpy numbers
        if name != "reason" and not isinstance(value, bool):
            raise NotTheirs(f"sets control.{name} to {value!r}", "it is no flag", "write True or False")
        super().__setattr__(name, value)

    def request_stop(self, reason: str) -> None:
        self.stop, self.reason = True, str(reason or "a callback asked for it")

    def interrupt(self, reason: str) -> None:
        """Save and stop after this step; the same command resumes there."""
        self.request_stop(reason)
        self.interrupted = True

    def give_up(self, reason: str) -> None:
        """Prune this run: end it after this step without a last evaluation or checkpoint."""
        self.request_stop(reason)
        self.prune = True

    def clear(self) -> None:
        """Clear the requests of one step; a request to stop remains."""
        self.save = self.evaluate = self.log = self.rollback = self.end_pass = False
