"""The callback base class: override the events you need.

Events run on every rank, in the order the callbacks stand in the recipe. A callback that writes checks
``trainer.mesh.is_main``. What it must remember across a resume goes through ``state_dict``/``load_state_dict`` (JSON).
Metrics it wants in the next training line go into ``trainer.extra_metrics[name] = value``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..trainer_state import Control, TrainerState

if TYPE_CHECKING:
    from ..loop import Trainer

Metrics = dict[str, Any]


class Callback:
    """Base of all callbacks."""

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """After build and resume, before the first step."""

    def on_epoch_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Before the first step of a pass over the data (never for streams of unknown length)."""

    def on_step_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Before the forward of a global batch."""

    def on_pre_optimizer_step(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Gradients of the global batch are ready, not yet clipped."""

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """After the optimizer step; ``state.step`` counts it already."""

    def on_epoch_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """After the last step of a pass over the data."""

    def on_log(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        """A line is written: a training line, or an evaluation line (keys ``eval_*``)."""

    def on_evaluate(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        """After an evaluation, before its line is written."""

    def on_pre_save(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Before a checkpoint is written, on all ranks; an exception keeps it from being written."""

    def on_save(self, trainer: Trainer, state: TrainerState, control: Control, path: Path) -> None:
        """A checkpoint is complete at ``path``; written in the background, it may be one of some steps ago."""

    def on_train_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """After the last step and the last save; not called when training fails."""

    def on_wait(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Again and again while a callback has all ranks wait at the end, for an export that runs beside them."""

    def close(self) -> None:
        """Always called last, also after a failure: undo what was set up."""

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs, as JSON."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what ``state_dict`` gave."""
