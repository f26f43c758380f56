"""Best model: remember the best evaluation and request a checkpoint of its step, which ``keep_best`` then keeps.

The metric is set in one place only, ``checkpoint.metric`` and ``checkpoint.mode``. The rotation of checkpoints uses the
same two; with a metric of its own, this callback would save checkpoints that the rotation deletes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .callback import Callback, Metrics
from .comparison import improves, watched

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState


class BestModel(Callback):
    """Tracks ``state.best_metric`` and ``state.best_step``, and saves when they improve."""

    def on_evaluate(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        checkpoints = trainer.checkpoints
        value = watched(metrics, checkpoints.metric, "checkpoint.metric")
        if improves(value, state.best_metric, checkpoints.mode):
            state.best_metric, state.best_step = value, state.step
            control.save = True
