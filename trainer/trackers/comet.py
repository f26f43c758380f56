"""Tracker for Comet: report to an experiment on its server, or with ``mode=offline`` write an archive.

Such an archive is uploaded by ``comet upload``. The key is Comet's own (``comet login``, or ``COMET_API_KEY``). Comet's
automatic logging, which patches torch, is off: only the logged metrics of the run are reported.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .offline_mode import OfflineMode
from .tracker import NoLogin

FOLDER = "comet"


@dataclass(eq=False)
class Comet(OfflineMode):
    """Reports to Comet."""

    workspace: str | None = None
    """Workspace that holds the project; null takes that of the login."""

    TITLE: ClassVar = "Comet"
    LIBRARY: ClassVar = "comet_ml"
    PACKAGE: ClassVar = "comet_ml"
    KEY: ClassVar = "comet"
    LOGGERS: ClassVar = ("comet_ml",)
    VARIABLES: ClassVar = ("COMET_URL_OVERRIDE", "COMET_API_KEY")

    def __post_init__(self) -> None:
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")  # read when the library is imported
        super().__post_init__()

    def log_in(self) -> None:
        config, errors = self.module("comet_ml.config"), self.module("comet_ml.exceptions")
        fix = "comet login, or set COMET_API_KEY; without a network callbacks.comet.mode=offline"
        key = config.get_api_key(None, config.get_config())
        if key is None:
            raise NoLogin("there is no key", fix)
        try:
            self.module().API(api_key=key, cache=False).get_workspaces()
        except errors.CometRestApiException as error:
            if error.response.status_code in (400, 401, 403):
                raise NoLogin("the key is refused", fix) from None
            raise

    def start(self, run: AboutRun) -> str:
        comet_ml = self.module()
        found = run.id or uuid.uuid4().hex
        config = comet_ml.ExperimentConfig(
            name=run.name,
            tags=run.tags or None,
            log_code=False,
            log_graph=False,
            parse_args=False,
            log_git_metadata=False,
            log_git_patch=False,
            log_env_details=False,
            auto_output_logging=False,
            auto_param_logging=False,
            auto_metric_logging=False,
            auto_log_co2=False,
            display_summary_level=0,
            offline_directory=str(run.folder / FOLDER),
        )
        self._run: Any = comet_ml.start(
            workspace=self.workspace,
            project_name=run.project,
            experiment_key=found,
            mode="get_or_create",
            online=not self.offline,
            experiment_config=config,
        )
        self._run.log_parameters(run.flat)
        self._run.log_others({"group": run.group, "trial": run.trial})
        return found

    def write(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self._run.log_metrics(line.numbers, step=line.step)

    def keep(self, kind: str, path: Path, step: int) -> None:
        if kind == "checkpoints":
            self._run.log_model(f"checkpoint-{path.name}", str(path))
        elif kind == "curve":
            self._run.log_image(str(path), name=kind, step=step)
        else:
            self._run.log_asset(str(path), step=step, overwrite=True)

    def finish(self, status: Status, reason: str) -> None:
        self._run.log_others({"status": status, "reason": reason})
        self._run.end()
