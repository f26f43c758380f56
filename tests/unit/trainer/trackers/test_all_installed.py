"""Tests that ``tracker=all`` uses every tracker that is installed and logged in, and that the log names the others."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from helpers.command import ROOTS, trireme_here
from helpers.recipes import TINY
from trireme.trainer.callback_list import CallbackList
from trireme.trainer.trackers import all_installed
from trireme.trainer.trackers.all_installed import AllInstalled
from trireme.trainer.trackers.registry import installed_trackers
from trireme.trainer.trackers.tracker import NoLogin

from .conftest import InMemory, Run


@dataclass(eq=False)
class Locked(InMemory):
    """A service without a login."""

    KEY: ClassVar = "locked"

    def login(self) -> None:
        raise NoLogin("there is no key", "log in")


@dataclass(eq=False)
class Small(InMemory):
    """A tracker that keeps no checkpoints."""

    KEY: ClassVar = "small"
    KEEPS: ClassVar = ("curve",)


def test_trackers_that_work_are_added(run: Run, monkeypatch: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(all_installed, "installed_trackers", lambda: [InMemory, Locked, Small])
    run.trainer.callbacks = CallbackList()
    run.trainer.mesh.broadcast_object = lambda value: value
    every = AllInstalled(project="sea", artifacts=["checkpoints", "curve"])
    run.fire("on_init_end", every)
    memory, small = run.trainer.callbacks.values()
    assert list(run.trainer.callbacks) == ["memory", "small"] and memory.project == "sea"
    assert (memory.artifacts, small.artifacts) == (["checkpoints", "curve"], ["curve"])
    assert caplog.messages == [
        "this run reports to memory, small",
        "trackers that are left out: locked (Memory: there is no key)",
    ]


def test_the_check_accepts_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert {"tensorboard", "wandb", "mlflow"} <= {cls.KEY for cls in installed_trackers()}
    assert trireme_here(capsys, "check", str(TINY), ROOTS, "tracker=all").returncode == 0
    refused = trireme_here(capsys, "check", str(TINY), ROOTS, "tracker=all", "callbacks.trackers.patience=-1")
    assert refused.returncode == 2 and "callbacks.trackers.patience" in refused.stderr
