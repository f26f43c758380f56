"""Tracker for Aim: report to a repository ``.aim`` beside the run folders, or to an Aim server (``aim://host:port``).

View it with ``aim up --repo runs``. A resume continues the Aim run with the same hash.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .tracker import Tracker


@dataclass(eq=False)
class Aim(Tracker):
    """Reports to Aim."""

    repo: str | None = None
    """Folder of the repository or address of a server; null takes the folder that holds the run folder."""

    TITLE: ClassVar = "Aim"
    LIBRARY: ClassVar = "aim"
    PACKAGE: ClassVar = "aim"
    KEY: ClassVar = "aim"
    LOGGERS: ClassVar = ("aim",)
    KEEPS: ClassVar = ("curve", "samples")

    def start(self, run: AboutRun) -> str:
        aim = self.module()
        place = self.repo or str(run.folder.absolute().parent)
        if "://" not in place and not (Path(place) / ".aim").exists():
            Path(place).mkdir(parents=True, exist_ok=True)
            aim.Repo.from_path(place, init=True)
        self._run: Any = aim.Run(
            run_hash=run.id,
            repo=place,
            experiment=run.project,
            force_resume=run.id is not None,
            system_tracking_interval=None,
            log_system_params=False,
            capture_terminal_logs=False,
        )
        self._run.name = run.name
        self._run["recipe"] = run.config
        self._run["group"], self._run["trial"] = run.group, run.trial
        for tag in run.tags:
            self._run.add_tag(tag)
        return self._run.hash

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            for tag, value in line.numbers.items():
                subset, _, name = tag.partition("/")
                self._run.track(value, name=name, step=line.step, context={"subset": subset})

    def keep(self, kind: str, path: Path, step: int) -> None:
        aim = self.module()
        if kind == "curve":
            self._run.track(aim.Image(str(path)), name=kind, step=step)
        else:
            self._run.track(aim.Text(path.read_text(encoding="utf-8", errors="replace")), name=kind, step=step)

    def finish(self, status: Status, reason: str) -> None:
        self._run["status"], self._run["reason"] = status, reason
        self._run.close()
