"""Tracker for SwanLab: report to its server, or with ``mode=local`` or ``mode=offline`` write files to the run folder.

The files are in ``swanlog``: those of ``offline`` are uploaded later by ``swanlab sync``, those of ``local`` are shown
by ``swanlab watch``. The API key is that of ``swanlab login``, or ``SWANLAB_API_KEY``.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from .about_run import AboutRun
from .line import Line, Status
from .tracker import NoLogin, Tracker
from .tracker_library import is_installed

FOLDER = "swanlog"
STATE: dict[str, Any] = {"finished": "success", "interrupted": "aborted", "failed": "crashed"}


@dataclass(eq=False)
class SwanLab(Tracker):
    """Reports to SwanLab."""

    workspace: str | None = None
    """Workspace that holds the project; null takes that of the login."""
    mode: Literal["online", "offline", "local"] = "online"
    """``local`` and ``offline`` write files into the run folder."""

    TITLE: ClassVar = "SwanLab"
    LIBRARY: ClassVar = "swanlab"
    PACKAGE: ClassVar = "swanlab"
    KEY: ClassVar = "swanlab"
    VARIABLES: ClassVar = ("SWANLAB_API_HOST", "SWANLAB_API_KEY")
    KEEPS: ClassVar = ("curve", "samples")

    def place(self) -> str:
        return f"{self.mode} {super().place()}"

    def login(self) -> None:
        if self.mode == "local" and not is_installed("swanboard"):
            raise NoLogin("mode=local needs swanboard, which is not installed", "pip install 'swanlab[dashboard]'")
        if self.mode != "online":
            return
        key = os.environ.get("SWANLAB_API_KEY")
        fix = "swanlab login, or set SWANLAB_API_KEY; without a network callbacks.swanlab.mode=local"
        try:
            accepted = self.module().login(api_key=key, save=False, relogin=False)
        except self.module("swanlab.exceptions").AuthenticationError as error:
            raise NoLogin(f"{error}", fix) from None
        if not accepted:
            raise NoLogin("the key is refused", fix)

    def start(self, run: AboutRun) -> str:
        online = self.mode == "online"
        found = run.id or secrets.token_hex(8)
        self._run: Any = self.module().init(
            project=run.project,
            workspace=self.workspace,
            name=run.name,
            group=run.group,
            tags=run.tags,
            config=run.config | {"trial": run.trial, "id": found},
            mode=self.mode,
            log_dir=str(run.folder / FOLDER),
            id=found if online else None,
            resume="allow" if online else None,
        )
        return found

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._run.log(dict(line.numbers), step=line.step)

    def keep(self, kind: str, path: Path, step: int) -> None:
        swanlab = self.module()
        if kind == "curve":
            self._run.log({kind: swanlab.Image(str(path))}, step=step)
        else:
            self._run.log({kind: swanlab.Text(path.read_text(encoding="utf-8", errors="replace"))}, step=step)

    def finish(self, status: Status, reason: str) -> None:
        self._run.finish(state=STATE[status], error=None if status == "finished" else reason or status)
