"""Tracker for Neptune (client 1.x): report to a project, or with ``mode=offline`` write files for ``neptune sync``.

Offline files are in ``.neptune``. The login is Neptune's own (``NEPTUNE_API_TOKEN``), and the token names the server;
``project`` is ``workspace/name``. Neptune does not accept NaN and infinity, so such values are left out.
"""

from __future__ import annotations

import base64
import json
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .offline_mode import OfflineMode
from .tracker import NoLogin


@dataclass(eq=False)
class Neptune(OfflineMode):
    """Reports to Neptune."""

    TITLE: ClassVar = "Neptune"
    LIBRARY: ClassVar = "neptune"
    PACKAGE: ClassVar = "neptune"
    KEY: ClassVar = "neptune"
    LOGGERS: ClassVar = ("neptune",)
    VARIABLES: ClassVar = ("NEPTUNE_API_TOKEN",)

    def flaws(self) -> Iterator[str]:
        yield from super().flaws()
        if not self.offline and "/" not in self.project:
            yield f"project={self.project!r} names no workspace; write workspace/name"

    def place(self) -> str:
        return f"{super().place()} {self.project}"

    def log_in(self) -> None:
        fix = "set NEPTUNE_API_TOKEN; without a server callbacks.neptune.mode=offline"
        token = os.environ.get("NEPTUNE_API_TOKEN")
        if not token:
            raise NoLogin("there is no token", fix)
        try:
            json.loads(base64.b64decode(token))["api_address"]
        except (ValueError, KeyError):
            raise NoLogin("NEPTUNE_API_TOKEN is not a token of Neptune", fix) from None
        try:
            self.module().init_project(project=self.project, mode="read-only").stop()
        except self.module("neptune.exceptions").NeptuneException as error:
            raise NoLogin(f"the project cannot be opened: {type(error).__name__}", fix) from None

    def start(self, run: AboutRun) -> str:
        found = run.id or uuid.uuid4().hex[:32]
        self._run: Any = self.module().init_run(
            project=None if self.offline else run.project,
            custom_run_id=found,  # a run that has this id already is continued
            name=run.name,
            tags=run.tags or None,
            mode="offline" if self.offline else "async",
            source_files=[],
            git_ref=False,
            capture_stdout=False,
            capture_stderr=False,
            capture_hardware_metrics=False,
            capture_traceback=False,
        )
        self._run["recipe"] = run.flat
        self._run["run"] = {"group": run.group or "", "trial": -1 if run.trial is None else run.trial}
        return found

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            for tag, value in line.numbers.items():
                if math.isfinite(value):
                    self._run[tag].append(value, step=line.step, timestamp=line.time)

    def keep(self, kind: str, path: Path, step: int) -> None:
        if path.is_dir():
            self._run[f"{kind}/{path.name}"].upload_files(f"{path}/**/*", wait=True)
        else:
            self._run[kind].upload(str(path), wait=True)

    def finish(self, status: Status, reason: str) -> None:
        self._run["status"], self._run["reason"] = status, reason
        if status == "failed":
            self._run["sys/failed"] = True
        self._run.stop()
