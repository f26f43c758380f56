"""Tests of MLflow's real client with a local server: runs, resumes, logins, and outages during a run."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.command import ROOTS, refused, trireme_here
from helpers.mlflow_server import MlflowServer, mlflow_server
from helpers.recipes import TINY
from helpers.running import until
from helpers.tracked import about
from trireme.trainer.trackers.line import line_of
from trireme.trainer.trackers.mlflow import Mlflow

from .conftest import Run

pytest.importorskip("mlflow")


def report(server: MlflowServer, folder: Path, first: int, known: str | None, status: Any, **changes: Any) -> str:
    tracker = Mlflow(project="oars", uri=server.url)
    found = tracker.start(about(folder, id=known, **changes))
    tracker.write([line_of(step, 100.0 + step, {"loss": 1 / step}) for step in (first, first + 1)])
    tracker.keep("checkpoints", folder / "checkpoints" / "step_00000002", first)
    tracker.keep("curve", folder / "curve.png", first)
    tracker.finish(status, "because")
    return found


def test_a_run_goes_on_under_its_id_with_changed_parameters_as_tags(tmp_path: Path) -> None:
    with mlflow_server() as server:
        known = report(server, tmp_path, 1, None, "interrupted")
        (run,) = server.runs.values()
        assert run["info"]["status"] == "KILLED"
        assert report(server, tmp_path, 3, known, "finished", config={"seed": 8, "new": "x"}) == known
        assert report(server, tmp_path, 1, "f" * 32, "failed") != known, "a run that is gone begins anew"
    assert (run["info"]["status"], run["info"]["run_name"]) == ("FINISHED", "first")
    history = [(each["key"], each["step"], each["value"]) for each in run["history"]]
    assert history == [("train/loss", step, pytest.approx(1 / step)) for step in (1, 2, 3, 4)]
    tags = [(each["key"], each["value"]) for each in run["data"]["tags"]]
    assert {("group", "study"), ("trial", "3"), ("long", "true"), ("resumed.seed", "8")} <= set(tags)
    assert tags[-1] == ("status", "finished: because")
    parameters = {each["key"]: each["value"] for each in run["data"]["params"]}
    assert parameters["optimizer.betas"] == "[0.9, 0.99]" and parameters["seed"] == "7" and parameters["new"] == "x"
    where = f"1/{known}/artifacts"
    assert server.files[f"{where}/checkpoints/step_00000002/model.safetensors"] == b"weights"
    assert server.files[f"{where}/curve.png"].startswith(b"\x89PNG")


def check(capsys: pytest.CaptureFixture[str], server: MlflowServer) -> subprocess.CompletedProcess[str]:
    return trireme_here(capsys, "check", str(TINY), ROOTS, "tracker=mlflow", f"callbacks.mlflow.uri={server.url}")


def test_logins_are_checked(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow_server("me:secret") as server:
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
        refused(check(capsys, server), "MLflow", "refuses the login", "fix: set MLFLOW_TRACKING_USERNAME")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "secret")
        assert check(capsys, server).returncode == 0
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "other")  # another login is asked again
    refused(check(capsys, server), "MLflow cannot be reached", "fix: look at the network")


def test_a_server_that_goes_away_and_comes_back_gets_every_line(run: Run, caplog: Any) -> None:
    with mlflow_server() as server:
        tracker = Mlflow(uri=server.url)
        run.fire("on_train_begin", tracker)
        run.log(tracker, 1, loss=1.0)
        until(lambda: bool(next(iter(server.runs.values()))["history"]), 10)
        server.down = True
        for step in range(2, 50):
            run.log(tracker, step, loss=float(step))
        until(lambda: server.refused > 0, 20)
        server.down = False
        run.log(tracker, 50, loss=50.0)
        run.control.request_stop("done")
        run.fire("on_train_end", tracker)
        tracker.close()
        (known,) = server.runs.values()
    assert [each["step"] for each in known["history"] if each["key"] == "train/loss"] == list(range(1, 51))
    assert known["info"]["status"] == "FINISHED"
    assert sum("MLflow cannot be written to" in message for message in caplog.messages) == 1


def test_a_check_makes_no_store(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path}/new/runs.db"
    done = trireme_here(capsys, "check", str(TINY), ROOTS, "tracker=mlflow", f"callbacks.mlflow.uri={uri}")
    assert done.returncode == 0 and list(tmp_path.iterdir()) == []


def test_an_address_that_mlflow_does_not_know_is_no_outage(capsys: pytest.CaptureFixture[str]) -> None:
    done = trireme_here(capsys, "check", str(TINY), ROOTS, "tracker=mlflow", "callbacks.mlflow.uri=foo://bar")
    refused(done, "it has no store for foo://bar", "fix: write an address such as http://HOST:PORT")
