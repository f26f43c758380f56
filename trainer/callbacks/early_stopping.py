"""Early-stopping callback: end training when a metric has not improved for a given number of evaluations.

Callbacks get metrics that are already reduced over all ranks, so all ranks stop at the same step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .callback import Callback, Metrics
from .comparison import Mode, improves, watched

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState


class EarlyStopping(Callback):
    """Stops after ``patience`` evaluations in a row without improvement.

    Args:
        metric: name of the watched metric in the evaluation line.
        mode: ``min`` if smaller values are better, ``max`` if larger ones are.
        patience: number of evaluations in a row without improvement after which training stops.
        min_delta: a change counts as an improvement only if it is larger than this.
    """

    def __init__(
        self, metric: str = "eval_loss", mode: Mode = "min", patience: int = 3, min_delta: float = 0.0
    ) -> None:
        if mode not in ("min", "max"):
            raise ValueError(f"mode={mode!r} is not known; use min or max")
        if patience < 1:
            raise ValueError(f"patience={patience} is below 1; use 1 or more evaluations")
        if min_delta < 0:
            raise ValueError(f"min_delta={min_delta} is negative; use 0 or more")
        self.metric, self.patience, self.min_delta = metric, patience, min_delta
        self.mode: Mode = mode
        self.best: float | None = None
        self.waited = 0

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Keep a run stopped that had stopped early before it was resumed, unless ``patience`` was raised."""
        if self.waited >= self.patience:
            again = "raise callbacks.early_stopping.patience to go on, or start over with --fresh"
            control.request_stop(f"it has stopped early: {self._reason()}; {again}")

    def on_evaluate(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        value = watched(metrics, self.metric, "callbacks.early_stopping.metric")
        if improves(value, self.best, self.mode, self.min_delta):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited >= self.patience:
            control.request_stop(self._reason())

    def _reason(self) -> str:
        best = "a finite value" if self.best is None else f"{self.best:.6g}"
        return f"{self.metric} has not improved on {best} for {self.waited} evaluations"

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
