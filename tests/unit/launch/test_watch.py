"""The progress bar of a notebook is updated while the run is going on; outside a notebook, none is drawn."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
from IPython.display import HTML
from trireme.launch import watch
from trireme.trainer.callbacks.metrics_file import FILE_NAME
from trireme.trainer.callbacks.progress import WATCHED

STEPS = 1000


class Screen:
    """Stands for the notebook and its display; keeps the steps that were shown."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def display(self, bar: HTML, display_id: bool) -> Screen:
        self.update(bar)
        return self

    def update(self, bar: HTML) -> None:
        shown = re.search(rf'<progress value="(\d+)" max="{STEPS}"', str(bar.data))
        assert shown, bar.data
        self.steps.append(int(shown[1]))


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    screen = Screen()
    monkeypatch.setattr("IPython.display.display", screen.display)
    monkeypatch.setattr(watch, "EVERY_SECONDS", 0.02)
    return screen


def log(run_dir: Path, step: int) -> None:
    with (run_dir / FILE_NAME).open("a") as file:
        file.write(json.dumps({"step": step, "loss": 1 / step}) + "\n")


def test_progress_is_drawn_while_the_run_goes_on(
    tmp_path: Path, screen: Screen, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "in_notebook", lambda: True)
    with watch.watched(tmp_path, STEPS):
        assert WATCHED in os.environ
        for step in range(1, STEPS):
            log(tmp_path, step)
            time.sleep(0.02)
            if len(set(screen.steps)) > 1:  # one progress bar, and another in its place
                break
        assert len(set(screen.steps)) > 1 and max(screen.steps) < STEPS
        log(tmp_path, STEPS)
    assert screen.steps[-1] == STEPS and screen.steps == sorted(screen.steps)
    assert WATCHED not in os.environ


def test_outside_a_notebook_nothing_is_drawn(tmp_path: Path, screen: Screen) -> None:
    with watch.watched(tmp_path, STEPS):
        assert WATCHED not in os.environ
        log(tmp_path, STEPS)
    assert screen.steps == []
