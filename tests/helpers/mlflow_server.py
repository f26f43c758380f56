"""A local server for tests of trackers that report to MLflow. It implements the part of MLflow's REST API that a
training run calls: login, experiments, runs and artifacts.

MLflow's real client reports to this server. https://mlflow.org/docs/latest/api_reference/rest-api.html
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qs, urlsplit

from helpers.loopback import serving

API, FILES = "/api/2.0/mlflow/", "/api/2.0/mlflow-artifacts/artifacts/"


class MlflowServer:
    """The state of the server: what it has received.

    Args:
        login: ``user:password`` or a token that requests must bring; None takes everybody.
        prefix: path before the protocol's own, as DagsHub has it.
    """

    def __init__(self, login: str | None = None, prefix: str = "") -> None:
        self.login, self.prefix, self.url, self.down = login, prefix, "", False
        self.experiments: dict[str, dict[str, Any]] = {}
        self.runs: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.refused = 0

    def answer(self, method: str, path: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, Any]:
        where = urlsplit(path).path.removeprefix(self.prefix)
        if self.down:
            self.refused += 1
            return 503, {"error_code": "TEMPORARILY_UNAVAILABLE", "message": "the server is down"}
        if self.login is not None and headers.get("Authorization") not in self._accepted():
            return 401, {"error_code": "UNAUTHENTICATED", "message": "who are you?"}
        if where.startswith(FILES):
            self.files[where.removeprefix(FILES)] = body
            return 200, {}
        if not where.startswith(API):
            return 404, {"message": f"no {path}"}
        asked = json.loads(body or b"{}") | {name: each[0] for name, each in parse_qs(urlsplit(path).query).items()}
        return self._call(where.removeprefix(API), asked)

    def _accepted(self) -> tuple[str, str]:
        assert self.login is not None
        return f"Basic {base64.b64encode(self.login.encode()).decode()}", f"Bearer {self.login}"

    def _call(self, method: str, asked: dict[str, Any]) -> tuple[int, Any]:
        if method == "experiments/search":
            return 200, {"experiments": list(self.experiments.values())}
        if method == "experiments/get-by-name":
            found = self.experiments.get(asked["experiment_name"])
            missing = {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
            return (200, {"experiment": found}) if found else (404, missing)
        if method == "experiments/create":
            made = {"experiment_id": str(len(self.experiments) + 1), "name": asked["name"], "lifecycle_stage": "active"}
            self.experiments[asked["name"]] = made | {"artifact_location": "mlflow-artifacts:/1"}
            return 200, {"experiment_id": made["experiment_id"]}
        if method == "runs/create":
            return 200, {"run": self._new(asked)}
        run = self.runs.get(asked.get("run_id", ""))
        if run is None:
            return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": f"no run for {method}"}
        if method == "runs/update":
            run["info"] |= {name: asked[name] for name in ("status", "end_time") if name in asked}
        elif method in ("runs/log-batch", "runs/set-tag"):
            tags = [asked] if method == "runs/set-tag" else asked.get("tags", [])
            run["data"]["tags"] += [{"key": tag["key"], "value": tag["value"]} for tag in tags]
            run["data"]["params"] += asked.get("params", [])
            run["history"] += asked.get("metrics", [])
        shown = {"info": run["info"], "data": run["data"]}
        return 200, {"run_info": run["info"]} if method == "runs/update" else {"run": shown}

    def _new(self, asked: dict[str, Any]) -> dict[str, Any]:
        number = f"{len(self.runs) + 1:032x}"
        where = f"mlflow-artifacts:/{asked['experiment_id']}/{number}/artifacts"
        info = {"run_id": number, "run_uuid": number, "experiment_id": asked["experiment_id"], "status": "RUNNING"}
        info |= {"artifact_uri": where, "lifecycle_stage": "active", "run_name": asked.get("run_name", "")}
        data = {"params": [], "metrics": [], "tags": list(asked.get("tags", []))}
        self.runs[number] = {"info": info, "data": data, "history": []}
        return {"info": info, "data": data}


@contextmanager
def mlflow_server(
    login: str | None = None, prefix: str = "", secure: ssl.SSLContext | None = None
) -> Iterator[MlflowServer]:
    """Context with a server."""
    state = MlflowServer(login, prefix)
    with serving(state.answer, secure) as url:
        state.url = url
        yield state
