"""Tracker for MLflow: report to a tracking server, or to a local SQLite file beside the run folders.

The server is ``uri``, else ``MLFLOW_TRACKING_URI``, with MLflow's own variables for the login
(``MLFLOW_TRACKING_USERNAME``, ``_PASSWORD``, ``_TOKEN``). Without either, runs are stored in ``mlflow.db`` beside the
run folders; view them with ``mlflow ui --backend-store-uri sqlite:///runs/mlflow.db``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from .mlflow_protocol import MlflowAddress


@dataclass(eq=False)
class Mlflow(MlflowAddress):
    """Reports to MLflow; without an address into ``mlflow.db`` beside the run folder."""

    TITLE: ClassVar = "MLflow"
    LIBRARY: ClassVar = "mlflow"
    PACKAGE: ClassVar = "'trireme-train[mlflow]'"
    KEY: ClassVar = "mlflow"

    def flaws(self) -> Iterator[str]:
        yield from super().flaws()
        if self.uri is not None and "://" not in self.uri and self.uri != "databricks":
            yield f"uri={self.uri!r} is no address; write http://HOST:PORT, sqlite:///FILE or another store of MLflow"

    def login(self) -> None:
        if self.server is not None:
            self.ask("set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN")
