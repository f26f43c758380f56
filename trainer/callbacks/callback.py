"""The base class of callbacks: it has one method per training event, and a subclass overrides those that it needs.

Events are called on every rank, in the order of the callbacks in the recipe. A callback that writes files checks
``trainer.mesh.is_main``. State that must survive a resume goes through ``state_dict`` and ``load_state_dict`` (JSON).
Further metrics for the next logged step are set by ``trainer.extra_metrics[name] = value``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem
from ..trainer_state import Control, TrainerState

if TYPE_CHECKING:
    from ..loop import Trainer

Metrics = dict[str, Any]


class Callback:
    """Base of all callbacks."""

    needs_average = False
    """Whether it works on averaged weights, which a recipe without ``ema`` does not keep."""

    def on_init_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called once the trainer is built and a checkpoint is loaded; other callbacks can still be added here."""

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called after build and resume, before the first step, and again after a rollback."""

    def on_epoch_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called before the first step of a pass over the data; never for streams of unknown length."""

    def on_step_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called before the forward pass of a global batch."""

    def on_substep_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called when this rank has accumulated the gradient of one micro-batch; never under a pipeline, whose schedule
        interleaves them, nor for a loss of the global batch (contrastive)."""

    def on_pre_optimizer_step(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called when the gradients of the global batch are ready but not yet clipped."""

    def on_optimizer_step(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called when the weights have changed, before ``state.step`` counts the step; gradients are freed already."""

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called after the optimizer step, which ``state.step`` already counts."""

    def on_epoch_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called after the last step of a pass over the data."""

    def on_log(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        """Called for every training line, and for every evaluation line (keys ``eval_*``)."""

    def on_prediction_step(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called before each batch of an evaluation; ``trainer.evaluating`` is its number."""

    def on_evaluate(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        """Called after an evaluation, before its line is written."""

    def on_predict(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        """Called after ``trainer.predict`` has written predictions, with the metrics of their set."""

    def on_pre_save(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called on all ranks before a checkpoint is written; an exception prevents it."""

    def on_save(self, trainer: Trainer, state: TrainerState, control: Control, path: Path) -> None:
        """Called when a checkpoint is complete at ``path``; if written in the background, it is some steps old."""

    def on_push_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called on all ranks when the callback ``push`` begins an upload, or puts one behind the running one."""

    def on_train_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called after the last step and the last save; not called if training fails."""

    def on_wait(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Called repeatedly while all ranks wait at the end for a callback, such as an export in a thread."""

    def close(self) -> None:
        """Release resources: at the end, also after a failure, and before a rollback begins the run again."""

    def state_dict(self) -> dict[str, Any]:
        """State that a resume needs, as values that JSON can hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state that ``state_dict`` returned."""


def no_average(field: str) -> Problem:
    """The problem of a callback that needs averaged weights in a run that keeps none."""
    fix = "train with ema=average, or leave this out"
    return Problem(field, "asks for averaged weights, and this run keeps none", fix, True)
