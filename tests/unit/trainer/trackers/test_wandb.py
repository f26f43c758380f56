"""Tests of the Weights & Biases tracker, most of them with the real W&B client and a local server: an interrupted run
that continues, refused or missing keys, an unknown mode, and a server that does not answer.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.command import ROOTS, command, refused, trireme_here
from helpers.recipes import TINY
from helpers.wandb_server import KEY, WandbServer, wandb_server
from trireme.errors import UserError
from trireme.trainer.trackers.wandb import Wandb

pytest.importorskip("wandb")
DRIVE = """
import sys
from pathlib import Path
from helpers.tracked import about
from trireme.trainer.trackers.line import line_of
from trireme.trainer.trackers.wandb import Wandb

folder, first, status = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
tracker = Wandb(project="oars")
told = about(folder, id="abcd1234" if first > 1 else None)
if first == 1:
    import secrets
    secrets.token_hex = lambda size: "abcd1234"
assert tracker.start(told) == "abcd1234"
tracker.write([line_of(step, 100.0 + step, {"loss": 1 / step}) for step in (first, first + 1)])
for kind, name in (("checkpoints", "checkpoints/step_00000002"), ("curve", "curve.png"), ("samples", "samples.txt")):
    tracker.keep(kind, folder / name, first)
tracker.finish(status, "because")
"""


def environment(server: WandbServer, home: Path) -> dict[str, str]:
    where = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": str(home), "WANDB_HTTP_TIMEOUT": "5"}
    return {**os.environ, **where, "PYTHONPATH": os.pathsep.join(sys.path)}


def drive(server: WandbServer, folder: Path, first: int, status: str) -> None:
    tool = [sys.executable, "-c", DRIVE, str(folder), str(first), status]
    done = subprocess.run(tool, env=environment(server, folder), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on_under_its_id(tmp_path: Path) -> None:
    with wandb_server() as server:
        drive(server, tmp_path, 1, "interrupted")
        (run,) = server.runs.values()
        assert run["preempting"] and run["exit"] == 1
        drive(server, tmp_path, 3, "finished")
    assert list(server.runs) == ["abcd1234"]
    assert [(line["step"], line["train/loss"]) for line in run["history"] if "train/loss" in line] == [
        (1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3)), (4, 0.25),
    ]  # fmt: skip
    assert (run["project"], run["displayName"], run["groupName"], run["tags"]) == ("oars", "first", "study", ["long"])
    assert run["config"]["optimizer"]["value"] == {"lr": 0.1, "betas": [0.9, 0.99]}
    assert run["config"]["trial"]["value"] == 3
    assert run["files"]["samples.txt"] == b"--- step 1\nonce upon a time\n"
    assert any(name.startswith("media/images/curve") for name in run["files"])
    assert run["artifacts"][0]["artifactCollectionName"] == "abcd1234-checkpoint"
    assert (run["exit"], run["summary"]["status"], run["summary"]["reason"]) == (0, "finished", "because")


def test_a_login_that_is_refused_ends_before_anything_starts(tmp_path: Path) -> None:
    with wandb_server(refuses=True) as server:
        told = environment(server, tmp_path)
        tool = command("train", str(TINY), ROOTS, "tracker=wandb", f"run.dir={tmp_path / 'run'}", "--nproc", "2")
        done = subprocess.run(tool, env=told, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    refused(done, "tracker = 'wandb'", "W&B: the key is refused", "fix: wandb login, or set WANDB_API_KEY")
    assert not (tmp_path / "run").exists(), "the run has begun"


def test_no_key_is_one_message_of_the_check(tmp_path: Path) -> None:
    with wandb_server() as server:
        told = {name: value for name, value in environment(server, tmp_path).items() if name != "WANDB_API_KEY"}
        tool = command("check", str(TINY), ROOTS, "tracker=wandb")
        done = subprocess.run(tool, env=told, capture_output=True, text=True, timeout=120, cwd=tmp_path)
    refused(done, "W&B: there is no key", "callbacks.wandb.mode=offline")


def test_an_unknown_mode_in_the_environment_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "banana")
    refused(trireme_here(capsys, "check", str(TINY), ROOTS, "tracker=wandb"), "WANDB_MODE='banana' is unknown")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("Failed to execute API request: it did not respond in time.", "W&B cannot be reached"),
        ("https://connect.example.org: invalid key", "the key is refused"),
    ],
)
def test_a_server_that_does_not_answer_is_no_wrong_key(said: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb
    from wandb.errors import AuthenticationError

    def login(**options: Any) -> bool:
        raise AuthenticationError(f"Failed to authenticate with {said}")

    monkeypatch.setattr(wandb, "login", login)
    with pytest.raises(UserError, match=told):
        Wandb(mode="online")
