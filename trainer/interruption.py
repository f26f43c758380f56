"""Decide when a run must save everything and stop early: after a signal, or shortly before the wall-clock limit
``trainer.max_time``.

A scheduler that wants the machine back sends SIGTERM (and SIGKILL some seconds later), SLURM announces the end of a job
by SIGUSR1 (``--signal=USR1@120``), a user presses Ctrl-C, a lost connection hangs up its terminal (SIGHUP). A rank that
receives a signal only records it. At the end of the step all ranks agree to stop, save, and exit in the normal way.
This is part of the loop and not a callback, so that a recipe without callbacks does not lose its work either.

A second Ctrl-C ends the process at once. Handlers are installed during training only, and only in the main thread.
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
"""Signal that trireme's launcher sends for Ctrl-C: before training, SIGINT would end a rank with a traceback."""
SAME_KEYSTROKE = 1.0
"""Seconds within which a second SIGINT counts as the same keystroke: a terminal signals every process of the command,
and launchers relay their signal as well."""
STARTED = "TRIREME_STARTED"
"""Variable with the start of the run in seconds since the epoch, so that a launcher's queueing and imports count."""


class Signals:
    """Notes signals that ask this process to leave."""

    def __init__(self, speaks: bool = True) -> None:
        """``speaks``: whether to answer Ctrl-C on standard error at once."""
        self.speaks = speaks
        self.received = ""
        self._interrupted_at: float | None = None

    def noted(self) -> contextlib.AbstractContextManager[None]:
        """Context in which signals are noted; see ``answered_by``."""
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
        # Only the keyboard gets an answer; SIGTERM may come from a launcher because another rank has failed.
        if self.speaks and keyboard:  # os.write, since a handler may interrupt logging or print themselves
            with contextlib.suppress(OSError):
                os.write(2, b"\nsaving after this step; Ctrl-C again ends at once\n")


@contextmanager
def answered_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Context in which ``handler`` handles ``SIGNALS``; afterwards the old handlers are restored. It does nothing
    outside the main thread. SIGHUP stays ignored if it was (``nohup``)."""
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
            if was is not None:  # None means a handler of C code, which Python cannot restore
                signal.signal(number, was)


def _leave_terminal() -> None:
    """Redirect output to /dev/null after a hang-up: writing to a closed terminal would fail before the run is saved."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if stat.S_ISCHR(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)


class TimeLimit:
    """Decides when to stop so that the last save is done, and the process ended, before the limit.

    The margin is two saves (one may be due in the next step) of the longest duration so far, three steps of the longest
    duration among the last 20, and five seconds for leaving. Before the first save is timed, a tenth of the limit, at
    most a minute, is assumed for it.
    """

    LEAVING = 5.0

    def __init__(self, seconds: float | None, started: float) -> None:
        """
        Args:
            seconds: limit of the whole run, counted from ``started``; None sets none.
            started: start of the run, in seconds since the epoch.
        """
        self.seconds, self.started = seconds, started
        self.save = min(60.0, seconds / 10) if seconds else 0.0
        self.evaluation = 0.0
        self._timed = False
        self._steps: deque[float] = deque(maxlen=20)
        self._then: float | None = None

    def step_done(self) -> None:
        """Measure a step; called once per step."""
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
        """Seconds that are reserved for saving and leaving, at most half of the limit."""
        needed = 2 * self.save + 3 * max(self._steps, default=0.0) + self.LEAVING
        return min(needed, (self.seconds or 0) / 2)

    def reached(self, evaluation_due: bool) -> bool:
        """Whether to leave now; True too if a due evaluation would not end in time."""
        if self.seconds is None:
            return False
        ahead = self.margin + (self.evaluation if evaluation_due else 0.0)
        return time.time() + ahead >= self.started + self.seconds


class Leaving:
    """Tells whether a signal or the time limit asks this run to stop early."""

    def __init__(self, max_time: str | int | None, speaks: bool = True) -> None:
        """
        Args:
            max_time: ``trainer.max_time``.
            speaks: see ``Signals``.
        """
        self.max_time, self.signals = max_time, Signals(speaks)
        self.limit = TimeLimit(parse_time(max_time) if max_time else None, run_started())

    def asked(self, evaluation_due: bool = False) -> str:
        """The reason to leave: a signal, or the time limit; empty if there is none. It may differ between ranks."""
        if self.signals.received:
            return self.signals.received
        return f"trainer.max_time={self.max_time} is nearly over" if self.limit.reached(evaluation_due) else ""

    def heed(self, control: Control) -> None:
        """Request an early stop if a signal has come or the time is nearly over, unless this step is the last anyway.
        Called once per step."""
        self.limit.step_done()
        if control.stop and not control.evaluate:
            return
        if reason := self.asked(control.evaluate):
            control.interrupt(reason)


def run_started() -> float:
    """Start of this run in seconds since the epoch: as the launcher says, else the start of torchrun's agent or of this
    process. A restarted attempt belongs to the same run."""
    with contextlib.suppress(KeyError, ValueError):
        return float(os.environ[STARTED])
    process = psutil.Process()
    agent = process.parent() if "TORCHELASTIC_RUN_ID" in os.environ else None
    with contextlib.suppress(psutil.Error):
        return (agent or process).create_time()
    return process.create_time()


def parse_time(text: str | int) -> float:
    """Seconds of a time in SLURM's notation: MM, MM:SS, HH:MM:SS, D-HH, D-HH:MM or D-HH:MM:SS.

    A number below 60 is taken as minutes. A larger one may be what YAML made of 12:30:00 without quotes.

    Raises:
        ValueError: the text is none of these, or the time is zero.
    """
    if isinstance(text, int):
        if text >= 60:
            minutes = f"{text // 60:02}:{text % 60:02}"
            seconds = f"{text // 3600:02}:{text // 60 % 60:02}:{text % 60:02}"
            why = "may be minutes, or a time that YAML read without quotes"
            raise ValueError(f'max_time={text} {why}; write "{minutes}:00" or "{seconds}", with quotes in YAML')
        text = str(text)
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text.strip())
    if not match:
        raise ValueError(f"max_time={text!r} is not a time; write HH:MM:SS, D-HH:MM:SS, or minutes")
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
