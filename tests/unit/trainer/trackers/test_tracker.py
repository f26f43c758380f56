"""Tests of the base class of trackers: each metric is reported once, also after resumes and failures of the service;
kept files, logins, and wrong options.
"""

from __future__ import annotations

import logging
import shutil
import signal
import sys
import time
from dataclasses import dataclass
from typing import Any

import pytest
from helpers.running import until
from trireme.errors import UserError
from trireme.trainer.trackers import tracker as base
from trireme.trainer.trackers.reported import Reported
from trireme.trainer.trackers.tracker import NoLogin, Tracker
from trireme.trainer.trackers.tracker_library import is_installed

from .conftest import InMemory, Run


def tracked(run: Run, **options: Any) -> InMemory:
    tracker = InMemory(**options)
    run.fire("on_train_begin", tracker)
    return tracker


def ended(run: Run, tracker: InMemory) -> None:
    run.control.request_stop("all is done")
    run.fire("on_train_end", tracker)
    tracker.close()


def test_lines_names_and_facts_reach_the_tracker(run: Run) -> None:
    tracker = tracked(run, project="sea", tags=["long"])
    run.log(tracker, 1, loss=2.5, lr=0.1, epoch=None, skipped=True, note="text")
    run.log(tracker, 1, eval_loss=2.0)
    ended(run, tracker)
    assert tracker.lines == [(1, {"train/loss": 2.5, "train/lr": 0.1}), (1, {"eval/loss": 2.0})]
    told = tracker.run
    assert (told.name, told.project, told.group, told.trial, told.tags) == ("demo", "sea", "study", 4, ["long"])
    assert told.config["seed"] == 7 and told.flat["about.ranks"] == 1
    assert tracker.ended == ("finished", "all is done")


def test_only_the_main_rank_reports(run: Run) -> None:
    run.trainer.mesh.is_main = False
    tracker = tracked(run)
    run.log(tracker, 1, loss=1.0)
    ended(run, tracker)
    assert not hasattr(tracker, "lines") and list(run.trainer.run_dir.iterdir()) == []


def test_a_resume_reports_each_line_once_under_the_same_id(run: Run) -> None:
    """The first start is killed after step 4, whose evaluation was not reported; the checkpoint is of step 2."""
    first = tracked(run)
    lines = [{"step": step, "loss": float(step)} for step in range(1, 5)]
    for line in lines:
        run.log(first, **line)
    until(lambda: Reported(run.trainer.run_dir, "memory").has(4, {"loss": 4.0}), 5)
    run.state.step, run.trainer.history.lines = 2, lines[:2]
    again = tracked(run)
    for line in lines[2:]:
        run.log(again, **line)
    run.log(again, 4, eval_loss=0.5)
    run.log(again, 5, loss=5.0)
    ended(run, again)
    assert again.run.id == "number-1"
    assert [*first.lines, *again.lines] == [
        *((step, {"train/loss": float(step)}) for step in range(1, 5)),
        (4, {"eval/loss": 0.5}),
        (5, {"train/loss": 5.0}),
    ]


def test_a_resume_reports_what_a_killed_run_had_not(run: Run) -> None:
    run.state.step, run.trainer.history.lines = 2, [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 2.0}]
    reported = Reported(run.trainer.run_dir, "memory")
    reported.id = "number-1"
    reported.add(1, {"loss": 1.0})
    reported.save()
    tracker = tracked(run)
    ended(run, tracker)
    assert tracker.lines == [(2, {"train/loss": 2.0})]


def test_lines_wait_for_a_service_that_fails_and_the_failure_is_said_once(run: Run, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    tracker = tracked(run)
    tracker.failures = 3
    for step in range(1, 30):
        run.log(tracker, step, loss=float(step))
    until(lambda: len(tracker.lines) == 29, 5)
    ended(run, tracker)
    assert [step for step, _ in tracker.lines] == list(range(1, 30))
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "INFO"], caplog.text
    assert caplog.messages[0] == "this run reports to Memory"
    assert "Memory cannot be written to, training goes on and lines wait: the service is down" in caplog.text
    assert "Memory accepts lines again" in caplog.text


def test_a_service_that_stays_away_is_given_up_at_the_end(run: Run, caplog: Any) -> None:
    tracker = tracked(run, system_seconds=None)
    tracker.failures = 10**6
    run.log(tracker, 1, loss=1.0)
    ended(run, tracker)
    assert "Memory lacks the last 1 lines; metrics.jsonl has them" in caplog.text
    assert tracker.ended is not None
    assert not Reported(run.trainer.run_dir, "memory").has(1, {"loss": 1.0}), "the next start reports it"


def test_a_service_that_hangs_holds_the_end_up_no_longer_than_patience(run: Run, caplog: Any, monkeypatch: Any) -> None:
    tracker = tracked(run, patience=0.2)
    monkeypatch.setattr(tracker, "write", lambda lines: time.sleep(3))
    run.log(tracker, 1, loss=1.0)
    began = time.monotonic()
    ended(run, tracker)
    assert time.monotonic() - began < 1
    assert "Memory has not taken everything within 0.2 s" in caplog.text


def test_a_start_that_fails_switches_it_off(run: Run, caplog: Any, monkeypatch: Any) -> None:
    def start(self: Any, about: Any) -> str:
        raise RuntimeError("no room\nfor you")

    monkeypatch.setattr(InMemory, "start", start)
    tracker = tracked(run)
    run.log(tracker, 1, loss=1.0)
    ended(run, tracker)
    assert caplog.messages == ["Memory is off: no room for you"]


def test_the_status_of_a_run(run: Run) -> None:
    stopped = tracked(run)
    run.control.interrupt("SIGTERM")
    run.fire("on_train_end", stopped)
    stopped.close()
    assert stopped.ended == ("interrupted", "SIGTERM")

    diverged = tracked(run)
    run.control.interrupted = False
    run.log(diverged, 3, loss=float("nan"))
    ended(run, diverged)
    assert diverged.ended == ("failed", "the loss is not finite")

    crashed = tracked(run)
    try:
        raise MemoryError("too large")
    except MemoryError:
        crashed.close()
    assert crashed.ended == ("failed", "MemoryError: too large")


def test_a_rollback_goes_on_and_reports_other_values_of_the_same_steps(run: Run) -> None:
    tracker = tracked(run)
    for step in (1, 2, 3):
        run.log(tracker, step, loss=float(step))
    run.control.rollback = True  # as the loop does: callbacks are closed and begin again
    tracker.close()
    run.state.step = 1
    run.fire("on_train_begin", tracker)
    run.control.rollback = False
    run.log(tracker, 2, loss=20.0)
    ended(run, tracker)
    assert [(step, line["train/loss"]) for step, line in tracker.lines] == [(1, 1), (2, 2), (3, 3), (2, 20)]
    assert tracker.ended == ("finished", "all is done")


def test_files_are_kept_even_if_the_rotation_deletes_them(run: Run, monkeypatch: Any) -> None:
    folder = run.trainer.run_dir
    for name in ("curve.png", "samples.txt", "log.txt"):
        (folder / name).write_bytes(b"x")
    checkpoint = folder / "checkpoints" / "step_00000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "weights").write_bytes(b"w")
    left = folder / ".tracked" / "memory" / "step_00000001"  # by a run that was killed
    left.mkdir(parents=True)
    monkeypatch.setattr("trireme.trainer.trackers.sender.PAUSE", 0.3)
    tracker = tracked(run, artifacts=["checkpoints", "samples", "curve", "log"])
    run.state.step = 2
    run.fire("on_save", tracker, path=checkpoint)
    shutil.rmtree(checkpoint)
    (folder / "samples.txt").write_bytes(b"more")
    ended(run, tracker)
    assert tracker.files == [
        ("checkpoints", 2, ["weights"]), ("samples", 2, "samples.txt"), ("curve", 2, "curve.png"),
        ("samples", 2, "samples.txt"), ("log", 2, "log.txt"),
    ], "unchanged files are kept once, the log at the end"  # fmt: skip
    assert not (folder / ".tracked").exists()


@dataclass(eq=False)
class Guarded(InMemory):
    """A service with a login."""

    asked = 0
    error: Any = None

    def login(self) -> None:
        type(self).asked += 1
        if self.error is not None:
            raise self.error


def test_a_login_is_asked_for_once_and_on_the_main_rank_only(monkeypatch: Any) -> None:
    monkeypatch.setattr(Guarded, "asked", 0)
    Guarded(), Guarded()
    assert Guarded.asked == 1
    monkeypatch.setattr(base, "_accepted", set())
    monkeypatch.setenv("RANK", "1")
    Guarded()
    assert Guarded.asked == 1


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (NoLogin("the key is refused", "log in first"), r"Memory: the key is refused\n  fix: log in first"),
        (ConnectionError("timed out"), r"Memory cannot be reached: timed out\n  fix: look at the network"),
    ],
)
def test_a_login_that_fails_is_one_message(error: Exception, said: str) -> None:
    with pytest.raises(UserError, match=said):
        Guarded(error=error)


def test_ranks_that_are_started_again_go_on_without_the_service(monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    Guarded(error=ConnectionError("timed out"))
    assert caplog.messages == ["Memory cannot be reached now: timed out"]


def test_a_missing_library_is_named_with_its_install_line(monkeypatch: Any, tmp_path: Any) -> None:
    monkeypatch.setattr(InMemory, "LIBRARY", "aimless")
    (tmp_path / "aimless").mkdir()  # a folder that a tracker left
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("aimless") and not is_installed("aimless.inner")
    with pytest.raises(
        UserError, match=r"needs the library aimless, which is not installed\n  fix: pip install nothing"
    ):
        InMemory()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"project": " "}, "project=' ' is empty"),
        ({"system_seconds": 0.1}, "system_seconds=0.1 is below 1"),
        ({"patience": -1.0}, "patience=-1.0 is negative"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        InMemory(**options)


def test_a_library_keeps_no_handler_of_signals_and_exceptions(run: Run, monkeypatch: Any) -> None:
    def start(self: Any, about: Any) -> str:
        signal.signal(signal.SIGTERM, lambda *_: None)
        sys.excepthook = lambda *_: None
        return "x"

    monkeypatch.setattr(InMemory, "start", start)
    before = signal.getsignal(signal.SIGTERM), sys.excepthook
    tracker = tracked(run)
    assert (signal.getsignal(signal.SIGTERM), sys.excepthook) == before
    monkeypatch.setattr(InMemory, "write", lambda self, lines: None)
    tracker.close()


def test_figures_of_the_machine_come_at_once_and_at_the_end(run: Run, monkeypatch: Any) -> None:
    seen: list[dict[str, float]] = []
    monkeypatch.setattr(InMemory, "write", lambda self, lines: seen.extend(line.numbers for line in lines))
    tracker = tracked(run, system_seconds=1000.0)
    until(lambda: len(seen) == 1, 5)
    ended(run, tracker)
    assert len(seen) == 2
    assert seen[1]["system/process_memory_mib"] > 10 and seen[1]["system/memory_percent"] > 0


def test_all_trackers_have_what_the_base_asks_for() -> None:
    from trireme.trainer.trackers.registry import CLASSES, tracker_class

    for key in CLASSES:
        cls = tracker_class(key)
        assert issubclass(cls, Tracker) and key == cls.KEY and cls.TITLE and cls.LIBRARY and cls.PACKAGE
