"""Tracker for DVCLive: write metrics, parameters and images to ``dvclive`` in the run folder, for DVC and DVC Studio.

``experiment=true`` also saves a DVC experiment when the run ends. DVC stores experiments and checkpoints in the Git
repository that the current folder belongs to; DVCLive makes it a DVC repository if it is none yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .tracker import NoLogin, Tracker

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

    def place(self) -> str:
        return f"{Path.cwd()} {self._needs_repository()}"

    def login(self) -> None:
        here = Path.cwd()
        inside = any((folder / name).exists() for folder in (here, *here.parents) for name in (".git", ".dvc"))
        if (what := self._needs_repository()) and not inside:
            # DVCLive would leave them out without a word.
            why = f"{what} are saved in a DVC or Git repository, but {here} is not inside one"
            raise NoLogin(why, "run git init && dvc init, start inside of a repository, or leave these options out")

    def _needs_repository(self) -> str:
        """The options in use that need a repository, in words; empty if there are none."""
        kept = "checkpoints" if "checkpoints" in self.artifacts else ""
        return " and ".join(filter(None, [kept, "experiments" if self.experiment else ""]))

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
