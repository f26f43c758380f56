"""Fixtures for tracker tests: the parts of a trainer that trackers use, and a tracker that records its calls."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from trireme.trainer.callbacks.callback import Callback
from trireme.trainer.trackers import sender, tracker
from trireme.trainer.trackers.about_run import AboutRun
from trireme.trainer.trackers.tracker import Tracker
from trireme.trainer.trainer_state import Control, TrainerState


@dataclass(eq=False)
class InMemory(Tracker):
    """A tracker that keeps lines and files in lists. Its next ``failures`` writes fail."""

    TITLE: ClassVar = "Memory"
    LIBRARY: ClassVar = "json"
    PACKAGE: ClassVar = "nothing"
    KEY: ClassVar = "memory"

    def start(self, run: AboutRun) -> str:
        self.run, self.lines, self.files, self.ended = run, [], [], None
        self.failures = 0
        return run.id or "number-1"

    def write(self, lines: Any) -> None:
        if self.failures:
            self.failures -= 1
            raise ConnectionError("the service is down")
        self.lines += [(line.step, line.numbers) for line in lines if "system/cpu_percent" not in line.numbers]

    def keep(self, kind: str, path: Path, step: int) -> None:
        self.files.append((kind, step, sorted(each.name for each in path.rglob("*")) if path.is_dir() else path.name))

    def finish(self, status: str, reason: str) -> None:
        self.ended = (status, reason)


@dataclass
class Recipe:
    """The parts of a recipe that trackers read by name."""

    run: Any = field(default_factory=lambda: SimpleNamespace(group="study", trial=4))
    seed: int = 7


class Run:
    """Drives trackers through a run as the loop does."""

    def __init__(self, run_dir: Path) -> None:
        run_dir.mkdir(exist_ok=True)
        self.state, self.control = TrainerState(max_steps=10, stop_at=10), Control()
        mesh = SimpleNamespace(is_main=True, world_size=1, device=torch.device("cpu"))
        self.trainer: Any = SimpleNamespace(
            mesh=mesh, run_dir=run_dir, recipe=Recipe(), history=SimpleNamespace(lines=[]), metrics={},
            state=self.state, control=self.control, blueprint=torch.nn.Linear(2, 2), extra_metrics={},
        )  # fmt: skip

    def fire(self, event: str, callback: Callback, **extra: Any) -> None:
        getattr(callback, event)(self.trainer, self.state, self.control, **extra)

    def log(self, callback: Callback, step: int, **metrics: Any) -> None:
        self.state.step = step
        self.trainer.metrics.update(metrics)
        self.fire("on_log", callback, metrics={"step": step, **metrics})


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "demo")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sender, "PAUSE", 0.02)
    monkeypatch.setattr(tracker, "_accepted", set())
    yield
