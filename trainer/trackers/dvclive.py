"""Tracker for DVCLive: write metrics, parameters and images to ``dvclive`` in the run folder, for DVC and DVC Studio.

``experiment=true`` also saves a DVC experiment when the run ends; this needs a Git repository with DVC around the run
folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .tracker import Tracker

FOLDER = "dvclive"


@dataclass(eq=False)
class DvcLive(Tracker):
    """Writes files by DVCLive."""

    experiment: bool = False
    """Save a DVC experiment at the end."""

    TITLE: ClassVar = "DVCLive"
    LIBRARY: ClassVar = "dvclive"
    PACKAGE: ClassVar = "dvclive"
    KEY: ClassVar = "dvclive"
    LOGGERS: ClassVar = ("dvclive", "dvc")
    KEEPS: ClassVar = ("checkpoints", "curve")

    def start(self, run: AboutRun) -> str:
        self._live: Any = self.module().Live(
            dir=str(run.folder / FOLDER),
            resume=run.id is not None,
            report=None,
            save_dvc_exp=self.experiment,
            dvcyaml=str(run.folder / FOLDER / "dvc.yaml"),
            exp_message=run.name,
            monitor_system=False,
        )
        run_part = {"group": run.group or "", "trial": -1 if run.trial is None else run.trial, "tags": run.tags}
        self._live.log_params({"recipe": run.config, "run": run_part})
        return FOLDER

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._live.step = line.step
            for tag, value in line.numbers.items():
                self._live.log_metric(tag, value)
        self._live.make_summary()

    def keep(self, kind: str, path: Path, step: int) -> None:
        if kind == "curve":
            self._live.log_image("curve.png", str(path))
        else:
            self._live.log_artifact(str(path), type="model", name=path.name, copy=True)

    def finish(self, status: Status, reason: str) -> None:
        self._live.summary["status"] = status
        self._live.end()
