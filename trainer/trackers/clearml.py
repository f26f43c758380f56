"""Tracker for ClearML: report to a task on its server, or with ``mode=offline`` write a session for later import.

An offline session is imported by ``Task.import_offline_session``. The credentials are ClearML's own (``clearml-init``,
or ``CLEARML_API_ACCESS_KEY``, ``CLEARML_API_SECRET_KEY`` and ``CLEARML_API_HOST``). ClearML's automatic logging, which
patches torch and the console, is off. Offline sessions are stored in ClearML's cache; a resume begins a further
session, which ClearML joins with the first one at the import.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .offline_mode import OfflineMode
from .tracker import NoLogin

AUTOMATIC = (
    "matplotlib", "tensorflow", "tensorboard", "pytorch", "xgboost", "scikit", "fastai", "lightgbm", "hydra",
    "tfdefines", "joblib", "megengine", "catboost", "gradio", "jsonargparse", "detect_repository",
)  # fmt: skip
"""Libraries that ClearML would log by itself, and its search for a repository, which takes ten seconds."""


@dataclass(eq=False)
class ClearML(OfflineMode):
    """Reports to ClearML."""

    TITLE: ClassVar = "ClearML"
    LIBRARY: ClassVar = "clearml"
    PACKAGE: ClassVar = "clearml"
    KEY: ClassVar = "clearml"
    LOGGERS: ClassVar = ("clearml",)
    VARIABLES: ClassVar = (
        "CLEARML_API_HOST", "CLEARML_API_ACCESS_KEY", "CLEARML_API_SECRET_KEY", "CLEARML_CONFIG_FILE",
    )  # fmt: skip

    def log_in(self) -> None:
        session = self.module("clearml.backend_api.session.session")
        fix = "clearml-init, or set CLEARML_API_ACCESS_KEY, CLEARML_API_SECRET_KEY and CLEARML_API_HOST; without a "
        fix += "network callbacks.clearml.mode=offline"
        try:
            self.module().Task.set_offline(False)  # logs in by itself after an offline run in the same process
            session.Session()
        except session.MissingConfigError:
            raise NoLogin("there are no credentials", fix) from None
        except session.LoginError as error:
            raise NoLogin(f"the credentials are refused: {error}", fix) from None

    def start(self, run: AboutRun) -> str:
        task = self.module().Task
        task.set_offline(self.offline)
        self._task: Any = task.init(
            project_name=run.project,
            task_name=run.name,
            tags=run.tags or None,
            reuse_last_task_id=False,
            continue_last_task=run.id if run.id and not self.offline else False,
            auto_connect_arg_parser=False,
            auto_connect_frameworks=dict.fromkeys(AUTOMATIC, False),
            auto_resource_monitoring=False,
            auto_connect_streams=False,
        )
        # A task that goes on would count its steps from its last one on.
        self._task.set_initial_iteration(0)
        self._task.set_parameters_as_dict({"recipe": run.config, "run": {"group": run.group, "trial": run.trial}})
        return run.id if run.id and self.offline else self._task.id

    def write(self, lines: Sequence[Line]) -> None:
        logger = self._task.get_logger()
        for line in lines:
            for tag, value in line.numbers.items():
                series, _, title = tag.partition("/")
                logger.report_scalar(title, series, value, line.step)

    def keep(self, kind: str, path: Path, step: int) -> None:
        logger = self._task.get_logger()
        if kind == "curve":
            logger.report_image(kind, kind, iteration=step, local_path=str(path))
        else:
            self._task.upload_artifact(path.name, str(path), metadata={"step": step}, wait_on_upload=True)

    def finish(self, status: Status, reason: str) -> None:
        self._task.set_user_properties(status=status, reason=reason)
        if status != "finished" and not self.offline:
            self._task.flush(wait_for_uploads=True)
            if status == "failed":
                self._task.mark_failed(ignore_errors=True, status_reason=reason, force=True)
            else:
                self._task.mark_stopped(force=True, status_message=reason)
        self._task.close()
