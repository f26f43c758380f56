"""A callback that records the times and memory of a trireme run (steps, evaluation, export) for ``compare.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from trireme.trainer.callbacks.callback import Callback

sys.path.insert(0, str(Path(__file__).parent))
from job import Job, Marks


class Noted(Callback):
    """Records steps, evaluation and export.

    Args:
        out: folder for the results of this run.
        shape: the job's shape.
    """

    def __init__(self, out: str, shape: dict[str, Any]) -> None:
        self.marks = Marks(Job(Path(out).parent, Path(out), "", shape))
        self.evaluates = False

    def on_step_end(self, trainer: Any, state: Any, control: Any) -> None:
        self.marks.step()

    def on_prediction_step(self, trainer: Any, state: Any, control: Any) -> None:
        if not self.evaluates:
            self.evaluates = True
            self.marks.begin()

    def on_evaluate(self, trainer: Any, state: Any, control: Any, metrics: dict[str, Any]) -> None:
        self.marks.loss = metrics["eval_loss"]
        self.marks.end("evaluation")

    def on_train_end(self, trainer: Any, state: Any, control: Any) -> None:
        from trireme.trainer.checkpoint.export.export_folder import export

        self.marks.begin()
        if trainer.mesh.is_main:
            export(str(self.marks.job.out / "run"), str(self.marks.job.out / "exported"))
        trainer.mesh.barrier()
        self.marks.end("export")
        self.marks.write()
