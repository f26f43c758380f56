"""Best-model callback: save a checkpoint whenever the watched evaluation metric improves on the best value so far.

``checkpoint.keep_best`` then keeps these checkpoints. The metric is set in one place only, by ``checkpoint.metric`` and
``checkpoint.mode``, because the removal of old checkpoints uses the same two keys: if this callback had a metric of its
own, it would save checkpoints that are removed again.
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
