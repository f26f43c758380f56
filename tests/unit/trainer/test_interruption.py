"""Tests of ending a run early: SLURM time formats, the margin before the time limit, and signals."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest
from trireme.trainer.interruption import SIGNALS, STARTED, Signals, TimeLimit, parse_time, run_started
from trireme.trainer.settings import TrainerConfig


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("01:02:03", 3723),
        ("1-00", 86400),
        ("1-02:30", 95400),
        ("2-00:00:05", 172805),
        (" 00:00:20 ", 20),
    ],
)
def test_times_are_read_as_slurm_writes_them(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-1", "00:00", "1.5", "UNLIMITED"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="max_time="):
        parse_time(text)
    with pytest.raises(ValueError, match="max_time="):
        TrainerConfig(max_steps=1, max_time=text)


def test_a_small_number_is_minutes_and_a_large_one_is_refused() -> None:
    assert parse_time(30) == parse_time("30") == 1800
    assert TrainerConfig(max_steps=1, max_time=30).max_time == 30
    with pytest.raises(ValueError, match=r"write \"750:00:00\" or \"12:30:00\""):
        TrainerConfig(max_steps=1, max_time=45000)


def test_the_margin_follows_saves_and_steps() -> None:
    limit = TimeLimit(1000.0, time.time())
    assert limit.margin == 2 * 60 + TimeLimit.LEAVING
    assert not limit.reached(False)
    limit.save_took(7.0)
    limit.save_took(3.0)
    assert limit.margin == 2 * 7 + TimeLimit.LEAVING, "what was measured, the longest"
    limit.step_done()
    time.sleep(0.05)
    limit.step_done()
    assert 2 * 7 + TimeLimit.LEAVING + 0.15 <= limit.margin < 2 * 7 + TimeLimit.LEAVING + 1
    limit.started -= 1000 - limit.margin
    assert limit.reached(False)


def test_an_evaluation_that_would_take_too_long_is_put_off() -> None:
    limit = TimeLimit(100.0, time.time() - 60)
    limit.save_took(1.0)
    limit.evaluation_took(50.0)
    assert not limit.reached(False)
    assert limit.reached(True)


def test_a_short_limit_leaves_half_of_it_for_training() -> None:
    assert TimeLimit(8.0, time.time()).margin == 4
    assert not TimeLimit(None, 0.0).reached(True)


def test_the_run_begins_where_the_launcher_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STARTED, raising=False)
    assert 0 <= time.time() - run_started() < 24 * 3600
    monkeypatch.setenv(STARTED, "123.5")
    assert run_started() == 123.5


@pytest.mark.parametrize(
    ("number", "name", "said"),
    [
        (signal.SIGTERM, "SIGTERM", ""),
        (signal.SIGUSR1, "SIGUSR1", ""),
        (signal.SIGHUP, "SIGHUP", ""),
        (signal.SIGINT, "SIGINT", "\nsaving after this step; Ctrl-C again ends at once\n"),
        (signal.SIGUSR2, "SIGINT", "\nsaving after this step; Ctrl-C again ends at once\n"),
    ],
)
def test_a_signal_is_noted_and_handlers_are_put_back(
    number: signal.Signals, name: str, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    try:
        before = [signal.getsignal(each) for each in SIGNALS]
        signals = Signals()
        with signals.noted():
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            assert signals.received == name
        assert [signal.getsignal(each) for each in SIGNALS] == before
    finally:
        signal.signal(signal.SIGHUP, hangup)
    assert capfd.readouterr().err == said


def test_a_second_keystroke_ends_at_once_and_an_echo_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trireme.trainer.interruption.SAME_KEYSTROKE", 0.2)
    signals = Signals(speaks=False)
    with signals.noted():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert signals.received == "SIGINT"
        time.sleep(0.25)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_outside_the_main_thread_nothing_is_touched() -> None:
    seen = []

    def note_signals() -> None:
        with Signals().noted():
            seen.extend(signal.getsignal(each) for each in SIGNALS)

    thread = threading.Thread(target=note_signals)
    thread.start()
    thread.join()
    assert seen == [signal.getsignal(each) for each in SIGNALS]


def test_under_nohup_a_hangup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signals = Signals()
        with signals.noted():
            signal.raise_signal(signal.SIGHUP)
        assert signals.received == "" and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
