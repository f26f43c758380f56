"""Test with the real DagsHub library and a local server: a resumed run, and refusals of a missing repository and of a
wrong or missing token.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers.loopback import serving
from helpers.mlflow_server import MlflowServer
from helpers.tracked import same_losses, train_twice
from trireme.errors import UserError
from trireme.trainer.trackers.dagshub import DagsHub

TOKEN = "f" * 40


@contextmanager
def dagshub() -> Iterator[MlflowServer]:
    """A server that knows one token and has the MLflow server of one repository."""
    state = MlflowServer(f"{TOKEN}:{TOKEN}", "/me/sea.mlflow")

    def answer(method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, object]:
        if path.startswith("/api/v1/user"):
            known = TOKEN in headers.get("Authorization", "") or f"{TOKEN}" in path
            return (200, {"login": "me", "username": "me"}) if known else (401, {"message": "bad token"})
        return state.answer(method, path, body, headers)

    with serving(answer) as url:
        state.url = url
        yield state


def told(monkeypatch: pytest.MonkeyPatch, server: MlflowServer, token: str | None) -> None:
    from dagshub.common import config

    monkeypatch.setattr(config, "host", server.url)
    monkeypatch.setattr(config, "token", token)
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # restored afterwards
    monkeypatch.setenv("DAGSHUB_USER_TOKEN", token or "")


def test_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "runs" / "oars"
    with dagshub() as server:
        told(monkeypatch, server, TOKEN)
        train_twice(run_dir, "dagshub", "callbacks.dagshub.repo=me/sea")
    (run,) = server.runs.values()
    losses = [(m["key"], m["step"], m["value"]) for m in run["history"] if m["key"] in ("train/loss", "eval/loss")]
    same_losses(losses, run_dir)
    assert run["info"]["status"] == "FINISHED" and "sea" in server.experiments
    assert any(name.endswith("curve.png") for name in server.files)
    assert any("step_00000006" in name for name in server.files)


def test_a_token_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="repo=None is not a repository; write owner/name"):
        DagsHub()
    with dagshub() as server:
        told(monkeypatch, server, "wrong")
        with pytest.raises(UserError, match=r"DagsHub: .*not valid\n  fix: dagshub login, or set DAGSHUB_USER_TOKEN"):
            DagsHub(repo="me/sea")
        told(monkeypatch, server, None)
        with pytest.raises(UserError, match="fix: dagshub login"):
            DagsHub(repo="me/sea")
