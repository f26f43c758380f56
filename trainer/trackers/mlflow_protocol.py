"""The base class of trackers that report through MLflow's client: MLflow itself, DagsHub, Azure ML.

The recipe becomes parameters, metrics are logged by step, the group and the trial are tags. trireme retries failed
requests by itself, so MLflow's own retries, which take minutes, are limited.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from .about_run import AboutRun
from .line import Line, Status
from .tracker import NoLogin, Tracker

STATUS = {"finished": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
LONGEST_VALUE, PARAMETERS, METRICS = 6000, 100, 1000
"""Most characters of a parameter's value; most parameters and metrics in one request."""


@dataclass(eq=False)
class MlflowProtocol(Tracker):
    """Reports by MLflow's client."""

    LOGGERS: ClassVar = ("mlflow", "alembic", "azureml")
    VARIABLES: ClassVar = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")

    @property
    def server(self) -> str | None:
        """Address of the server or store; None if it follows from the run folder."""
        raise NotImplementedError

    def place(self) -> str:
        return f"{self.server} {super().place()}"

    def ask(self, fix: str) -> None:
        """Ask the server for experiments, to see whether it accepts the login; ``fix``: what to do if it does not.

        Raises:
            NoLogin: it does not.
        """
        from mlflow.exceptions import MlflowException

        assert self.server is not None
        with few_retries():
            try:
                self._client(self.server).search_experiments(max_results=1)
            except MlflowException as error:
                if "unsupported URI" in str(error):
                    fix = "write an address such as http://HOST:PORT or sqlite:///FILE"
                    raise NoLogin(f"it has no store for {self.server}", fix) from None
                if found := re.search(r"\b40[13]\b|PERMISSION_DENIED|UNAUTHENTICATED|Unauthor", str(error)):
                    raise NoLogin(f"{self.server} refuses the login ({found[0]})", fix) from None
                raise

    def start(self, run: AboutRun) -> str:
        beside = run.folder.absolute().parent
        self._store = self.server or f"sqlite:///{beside / 'mlflow.db'}"
        self._api = self._client(self._store)
        with few_retries():
            known = self._known(run)
            if known is None:
                known = self._api.create_run(self._experiment(run, beside), run_name=run.name, tags=_tags(run))
            self._id: str = known.info.run_id
            if run.id == self._id:
                self._api.update_run(self._id, status="RUNNING")
            self._log_parameters(run, dict(known.data.params))
        return self._id

    def view(self) -> str:
        if not self.server:
            return f"mlflow ui --backend-store-uri {self._store}"
        return re.sub(r"//[^/@]*@", "//", self.server)  # without a name and password

    def write(self, lines: Sequence[Line]) -> None:
        from mlflow.entities import Metric

        found = [
            Metric(_allowed(tag), value, int(line.time * 1000), line.step)
            for line in lines
            for tag, value in line.numbers.items()
        ]
        with few_retries():
            for at in range(0, len(found), METRICS):
                self._api.log_batch(self._id, metrics=found[at : at + METRICS])

    def keep(self, kind: str, path: Path, step: int) -> None:
        if path.is_dir():
            self._api.log_artifacts(self._id, str(path), f"{kind}/{path.name}")
        else:
            self._api.log_artifact(self._id, str(path))

    def finish(self, status: Status, reason: str) -> None:
        with few_retries():
            self._api.set_tag(self._id, "status", f"{status}: {reason}" if reason else status)
            self._api.set_terminated(self._id, STATUS[status])

    def _client(self, uri: str) -> Any:
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri)

    def _known(self, run: AboutRun) -> Any:
        """The run of this id; None if there is none, or it was deleted."""
        from mlflow.exceptions import MlflowException

        try:
            known = self._api.get_run(run.id) if run.id else None
        except MlflowException:
            return None
        return known if known is not None and known.info.lifecycle_stage == "active" else None

    def _experiment(self, run: AboutRun, beside: Path) -> str:
        """Id of the project's experiment, created if needed. A local store keeps artifacts beside it."""
        found = self._api.get_experiment_by_name(run.project)
        if found is not None:
            return found.experiment_id
        kept = None if self.server else (beside / "mlartifacts").as_uri()
        return self._api.create_experiment(run.project, artifact_location=kept)

    def _log_parameters(self, run: AboutRun, there: dict[str, str]) -> None:
        """Log the recipe. Parameters never change in MLflow, so changed ones become tags ``resumed.KEY``."""
        from mlflow.entities import Param, RunTag

        wanted = {_allowed(key): str(value)[:LONGEST_VALUE] for key, value in run.flat.items()}
        new = [Param(key, value) for key, value in wanted.items() if key not in there]
        for at in range(0, len(new), PARAMETERS):
            self._api.log_batch(self._id, params=new[at : at + PARAMETERS])
        changed = [RunTag(f"resumed.{key}", value) for key, value in wanted.items() if there.get(key, value) != value]
        if changed:
            self._api.log_batch(self._id, tags=changed[:PARAMETERS])


@dataclass(eq=False)
class MlflowAddress(MlflowProtocol):
    """Reports to the server of an address."""

    uri: str | None = None
    """Address of the server, or of a store of MLflow; null takes ``MLFLOW_TRACKING_URI``."""

    @property
    def server(self) -> str | None:
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI")


QUIET = {"MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true"}


def _tags(run: AboutRun) -> dict[str, str]:
    named = {"group": run.group, "trial": run.trial}
    return {name: str(value) for name, value in named.items() if value is not None} | dict.fromkeys(run.tags, "true")


def _allowed(key: str) -> str:
    """A key with characters that MLflow takes."""
    return re.sub(r"[^\w./ -]", "_", key, flags=re.ASCII)


@contextmanager
def few_retries() -> Iterator[None]:
    """Context in which MLflow's client gives up after some seconds: trireme tries again later by itself."""
    wanted = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"} | QUIET
    added = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
