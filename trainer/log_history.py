"""Keep all metrics that a run has logged so far, for callbacks that need earlier values.

These are the metrics of training steps and of evaluations, including those from before a resume. They are equal on all
ranks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .callbacks.metrics_file import FILE_NAME, read_metrics

if TYPE_CHECKING:
    from .loop import Trainer


class LogHistory:
    """Training and evaluation lines in their order, those before a resume included."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def begin(self, trainer: Trainer) -> None:
        """Take the lines up to the step from which the run goes on; a collective call."""
        self.lines = []
        if trainer.state.step:
            file, found = trainer.run_dir / FILE_NAME, []
            if trainer.mesh.is_main and file.is_file():
                found = read_metrics(file, trainer.state.step)
            self.lines = list(trainer.mesh.broadcast_object(found))  # type: ignore[arg-type]
