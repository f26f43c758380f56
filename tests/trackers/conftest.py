"""Skips the test files of experiment trackers whose libraries are not installed, and gives each test a current folder,
a home and caches of its own.

``make trackers`` creates an environment for each library and runs its test there.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from trireme.trainer.trackers import tracker
from trireme.trainer.trackers.registry import CLASSES, tracker_class
from trireme.trainer.trackers.tracker_library import is_installed

collect_ignore = [f"test_{key}.py" for key in CLASSES if not is_installed(tracker_class(key).LIBRARY)]
if not is_installed("flask"):  # part of mlflow, but not of mlflow-skinny
    collect_ignore.append("test_mlflow.py")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give each test a current folder, a home and caches of its own, into which libraries write."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.setattr(tracker, "_accepted", set())  # a login of one test says nothing of the next
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # Trackio is first imported in its test, but the Hub's cache, in which it would keep its files, is known before.
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "home" / "trackio"))
