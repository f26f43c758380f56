"""Tracker for MLflow: report to a tracking server, or to a local SQLite file beside the run folders.

The server is ``uri``, else ``MLFLOW_TRACKING_URI``, with MLflow's own variables for the login
(``MLFLOW_TRACKING_USERNAME``, ``_PASSWORD``, ``_TOKEN``). Without either, runs are stored in ``mlflow.db`` beside the
run folders; view them with ``mlflow ui --backend-store-uri sqlite:///runs/mlflow.db``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
from urllib.parse import unquote, urlsplit

from .mlflow_protocol import MlflowAddress
from .tracker import NoLogin


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
            yield f"uri={self.uri!r} is not an address; write http://HOST:PORT, sqlite:///FILE or another MLflow store"

    def login(self) -> None:
        if self.server is not None and self.server.partition(":")[0] in ("sqlite", "file"):
            _check_place(self.server)  # MLflow would make folders and tables now
        elif self.server is not None:
            self.ask("set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN")


def _check_place(uri: str) -> None:
    """Refuse a local store in a place that cannot be written.

    Raises:
        NoLogin: it cannot.
    """
    path = urlsplit(uri).path
    place = Path(unquote(path[1:] if uri.startswith("sqlite:///") else path))
    there = next(folder for folder in (place.absolute(), *place.absolute().parents) if folder.exists())
    if not os.access(there, os.W_OK):
        raise NoLogin(f"{there} cannot be written", "name a place of your own, or leave uri out")
