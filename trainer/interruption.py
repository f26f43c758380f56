"""Leaving before the end, with everything saved: signals, and the wall-clock limit ``trainer.max_time``.

A scheduler that wants the machine back sends SIGTERM (and SIGKILL some seconds later), SLURM announces the end of a
job by SIGUSR1 (``--signal=USR1@120``), a person presses Ctrl-C, a broken connection hangs up its terminal (SIGHUP).
Whatever rank hears of it only makes a note; all ranks agree at the end of the step, save, and leave by the normal way.
It is part of the loop and not a callback, because a recipe without callbacks must not lose its work either.

A second Ctrl-C ends at once. Handlers are there for the time of training only, and only in the main thread.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import psutil

from .trainer_state import Control

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGUSR2, signal.SIGHUP)
RELAYED_AS = {signal.SIGINT: signal.SIGUSR2}
"""How trireme's launcher passes Ctrl-C on: before training SIGINT ends a rank with a traceback, SIGUSR2 without."""
SAME_KEYSTROKE = 1.0
"""Seconds within which a second SIGINT is taken for the first: a terminal sends one to every process of the command,
and launchers pass theirs on."""
STARTED = "TRIREME_STARTED"
"""When the run was started, in seconds since the epoch: a launcher's queueing and imports count as well."""


class Signals:
    """Notes signals that ask this process to leave."""

    def __init__(self, speaks: bool = True) -> None:
        """``speaks``: answer Ctrl-C on stderr at once."""
        self.speaks = speaks
        self.received = ""
        self._interrupted_at: float | None = None

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """Inside, signals are noted; before and after they do what they did. Does nothing outside the main thread."""
        return answered_by(self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT:
            now = time.monotonic()
            if self._interrupted_at is None:
                self._interrupted_at = now
            elif now - self._interrupted_at > SAME_KEYSTROKE:
                signal.default_int_handler(number, frame)
        if self.received:
            return
        keyboard = number in (signal.SIGINT, RELAYED_AS[signal.SIGINT])
        self.received = "SIGINT" if keyboard else signal.Signals(number).name
        # A person waits for an answer. (SIGTERM may also come from a launcher, because another rank has failed.)
        if self.speaks and keyboard:  # not by logging or print: this runs between any two instructions, theirs included
            with contextlib.suppress(OSError):
                os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")


@contextmanager
def answered_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Inside, ``handler`` answers ``SIGNALS``; before and after they do what they did. Does nothing outside the main
    thread. Where SIGHUP is ignored (``nohup``) it stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def answer(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            _leave_terminal()
        handler(number, frame)

    wanted = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, answer) for number in wanted}
    try:
        yield
    finally:
        for number, was in before.items():
            if was is not None:  # None: not set from Python, so not to be set back from here
                signal.signal(number, was)


def _leave_terminal() -> None:
    """It has hung up: what writes to it would fail, and the run with it, before it has saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)


class TimeLimit:
    """Knows when to stop so that the last save is done, and the process gone, before the limit.

    It reckons with two saves (one may be due in the very next step) as long as the longest so far, three steps as long
    as the longest of the last 20, and five seconds for leaving. Before a save was timed, one is taken for a tenth of
    the limit, at most a minute.
    """

    LEAVING = 5.0

    def __init__(self, seconds: float | None, started: float) -> None:
        """
        Args:
            seconds: of the whole run from ``started``; None is no limit.
            started: seconds since the epoch.
        """
        self.seconds, self.started = seconds, started
        self.save = min(60.0, seconds / 10) if seconds else 0.0
        self.evaluation = 0.0
        self._timed = False
        self._steps: deque[float] = deque(maxlen=20)
        self._then: float | None = None

    def step_done(self) -> None:
        """Called once per step."""
        now = time.monotonic()
        if self._then is not None:
            self._steps.append(now - self._then)
        self._then = now

    def save_took(self, seconds: float) -> None:
        self.save = max(self.save, seconds) if self._timed else seconds
        self._timed = True

    def evaluation_took(self, seconds: float) -> None:
        self.evaluation = max(self.evaluation, seconds)

    @property
    def margin(self) -> float:
        """Seconds that are kept for leaving; at most half of the limit."""
        needed = 2 * self.save + 3 * max(self._steps, default=0.0) + self.LEAVING
        return min(needed, (self.seconds or 0) / 2)

    def reached(self, evaluation_due: bool) -> bool:
        """Whether to leave now; an evaluation that would not end in time is put off."""
        if self.seconds is None:
            return False
        ahead = self.margin + (self.evaluation if evaluation_due else 0.0)
        return time.time() + ahead >= self.started + self.seconds


class Leaving:
    """Whether this run is asked to leave before its end, by a signal or by its time limit."""

    def __init__(self, max_time: str | None, speaks: bool = True) -> None:
        """
        Args:
            max_time: ``trainer.max_time``.
            speaks: as for ``Signals``.
        """
        self.max_time, self.signals = max_time, Signals(speaks)
        self.limit = TimeLimit(parse_time(max_time) if max_time else None, run_started())

    def asked(self, evaluation_due: bool = False) -> str:
        """The signal, or the time limit that is nearly over; empty if there is nothing. Ranks may hear differently."""
        if self.signals.received:
            return self.signals.received
        return f"trainer.max_time={self.max_time} is nearly over" if self.limit.reached(evaluation_due) else ""

    def heed(self, control: Control) -> None:
        """Called once per step: ask to leave if a signal has come or the time is over, unless this step is the last
        anyway."""
        self.limit.step_done()
        if control.stop and not control.evaluate:
            return
        if reason := self.asked(control.evaluate):
            control.interrupt(reason)


def run_started() -> float:
    """When this run began, in seconds since the epoch: what a launcher says, else when torchrun's agent or this process
    was started. A restarted attempt does not begin a new run."""
    with contextlib.suppress(KeyError, ValueError):
        return float(os.environ[STARTED])
    process = psutil.Process()
    agent = process.parent() if "TORCHELASTIC_RUN_ID" in os.environ else None
    with contextlib.suppress(psutil.Error):
        return (agent or process).create_time()
    return process.create_time()


def parse_time(text: str) -> float:
    """Seconds of a time as SLURM writes it: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    Raises:
        ValueError: it is none of these, or zero.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise ValueError(f"max_time={text!r} is no time; write HH:MM:SS, D-HH:MM:SS, or minutes")
    days, *parts = (int(part) if part is not None else None for part in match.groups())
    numbers = [part for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    total = ((days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds
    if not total:
        raise ValueError(f"max_time={text!r} leaves no time to train; null sets no limit")
    return float(total)
