"""Tracker for DagsHub: report to the MLflow server of a DagsHub repository.

The login is DagsHub's own (``dagshub login``, or ``DAGSHUB_USER_TOKEN``). It is passed to MLflow's client through
``MLFLOW_TRACKING_USERNAME`` and ``MLFLOW_TRACKING_PASSWORD``, as ``dagshub.init`` does.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from ...errors import UserError
from .mlflow_protocol import MlflowProtocol
from .tracker import NoLogin
from .tracker_library import missing_library


@dataclass(eq=False)
class DagsHub(MlflowProtocol):
    """Reports to DagsHub."""

    repo: str | None = None
    """Repository there, ``owner/name``."""

    TITLE: ClassVar = "DagsHub"
    LIBRARY: ClassVar = "dagshub"
    PACKAGE: ClassVar = "dagshub 'trireme-train[mlflow]'"
    KEY: ClassVar = "dagshub"
    VARIABLES: ClassVar = ("DAGSHUB_USER_TOKEN",)

    def __post_init__(self) -> None:
        if problem := missing_library(self.KEY, self.TITLE, "mlflow", self.PACKAGE):
            raise UserError(problem)
        super().__post_init__()

    def flaws(self) -> Iterator[str]:
        yield from super().flaws()
        if self.repo is None or self.repo.count("/") != 1:
            yield f"repo={self.repo} is not a repository; write owner/name"

    @property
    def server(self) -> str | None:
        return f"{self.module('dagshub.common.config').host.rstrip('/')}/{self.repo}.mlflow"

    def login(self) -> None:
        fix = "dagshub login, or set DAGSHUB_USER_TOKEN"
        try:
            token = self.module("dagshub.auth").get_token(fail_if_no_token=True)
        except RuntimeError as error:
            raise NoLogin(f"{error}", fix) from None
        os.environ["MLFLOW_TRACKING_USERNAME"] = os.environ["MLFLOW_TRACKING_PASSWORD"] = token
        self.ask(f"{fix}, of a user who may write to {self.repo}")
