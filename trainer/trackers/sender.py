"""Send metrics and files to an experiment tracker from a queue in a background thread, so that training does not wait.

The training loop only appends to the queue. The thread empties it once a second, so that a service gets the metrics of
many steps in one request. If the service fails, training continues: the failure is logged once, and the queue is kept
until the service is back (``Tracker.TRIES_AGAIN``) or the run ends.
"""

from __future__ import annotations

import logging
import textwrap
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .kept_files import forget
from .line import Line, Status, line_of
from .system_figures import SystemFigures

if TYPE_CHECKING:
    import torch

    from .reported import Reported
    from .tracker import Tracker

log = logging.getLogger("trireme.trainer.trackers")
PAUSE = 1.0
"""Seconds between two checks of the queue."""
LONGEST_WAIT = 60.0
"""Most seconds before a service that has failed is tried again; the wait doubles from ``PAUSE`` on."""
MOST = 100_000
"""Most lines that wait for a service that fails; the oldest are given up."""


class Sender:
    """Brings what the loop reports to one tracker.

    Args:
        tracker: the tracker, already started.
        reported: the record of the lines that were reported.
        system_seconds: seconds between figures of the machine; None takes none.
        device: of the main rank.
    """

    def __init__(
        self, tracker: Tracker, reported: Reported, system_seconds: float | None, device: torch.device
    ) -> None:
        self._tracker, self._reported, self._every = tracker, reported, system_seconds
        self._figures = SystemFigures(device) if system_seconds is not None else None
        self._figures_due = time.monotonic()
        self._queue: deque[Callable[[], None]] = deque()
        self._lines: deque[tuple[Line, Mapping[str, Any] | None]] = deque(maxlen=MOST)
        self._wake, self._ended = threading.Event(), threading.Event()
        self._off, self._said = False, set[str]()
        self._step, self._next_try, self._wait = 0, 0.0, PAUSE
        self._end: tuple[Status, str] | None = None
        self._thread = threading.Thread(target=self._work, name=f"tracker {tracker.KEY}", daemon=True)
        self._thread.start()

    # -- called by the training loop ------------------------------------------------------------------------------

    def line(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Report a training line or an evaluation, unless it was reported before."""
        taken, now = dict(metrics), time.time()
        self._queue.append(lambda: self._take(step, now, taken))

    def file(self, kind: str, path: Path, step: int) -> None:
        """Keep a file or a folder."""
        self._queue.append(lambda: self._keep(kind, path, step))

    def go_back(self, step: int) -> None:
        """Lines of steps after ``step`` will come again, after a rollback."""
        self._queue.append(lambda: self._go_back(step))

    def finish(self, status: Status, reason: str, patience: float) -> None:
        """Report what is left, end the run in the tracker, and wait for this as long as ``patience`` seconds."""
        self._end = (status, reason)
        self._wake.set()
        if not self._ended.wait(patience):
            what = f"{self._tracker.TITLE} has not taken everything within {patience:g} s"
            log.warning("%s; what it lacks is in metrics.jsonl", what)

    # -- in the thread --------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while self._end is None:
            self._wake.wait(PAUSE)
            self._round(last=False)
        self._round(last=True)
        self._try("could not be ended", lambda: self._tracker.finish(*self._end))  # type: ignore[misc]
        self._ended.set()

    def _round(self, last: bool) -> None:
        while self._queue:
            self._queue.popleft()()
        self._take_figures(last)
        self._write(last)

    def _take(self, step: int, now: float, metrics: dict[str, Any]) -> None:
        self._step = max(step, self._step)
        if not self._off and not self._reported.has(step, metrics):
            self._lines.append((line_of(step, now, metrics), metrics))
            self._reported.add(step, metrics)

    def _take_figures(self, last: bool) -> None:
        now = time.monotonic()
        if self._figures is None or self._off or (now < self._figures_due and not last):
            return
        self._figures_due = now + (self._every or 0)
        self._lines.append((Line(self._step, time.time(), self._figures.look()), None))

    def _write(self, last: bool) -> None:
        if not self._lines or self._off or (time.monotonic() < self._next_try and not last):
            return
        waiting = list(self._lines)
        try:
            self._tracker.write([line for line, _ in waiting])
        except Exception as error:  # libraries raise errors of many types
            self._failed(error, last)
            return
        self._lines.clear()
        if self._next_try:
            log.info("%s accepts lines again, and has got those that were waiting", self._tracker.TITLE)
            self._next_try, self._wait = 0.0, PAUSE
        self._try("what was reported cannot be noted", self._reported.save)

    def _failed(self, error: Exception, last: bool) -> None:
        tracker = self._tracker
        if not tracker.TRIES_AGAIN:
            self._off = True
            self._lines.clear()
            log.warning("%s is off: %s", tracker.TITLE, one_line(error))
            return
        self._say("write", f"cannot be written to, training goes on and lines wait: {one_line(error)}")
        if last:
            log.warning("%s lacks the last %d lines; metrics.jsonl has them", tracker.TITLE, len(self._lines))
        self._next_try = time.monotonic() + self._wait
        self._wait = min(2 * self._wait, LONGEST_WAIT)

    def _keep(self, kind: str, path: Path, step: int) -> None:
        if not self._off:
            self._write(last=False)  # what came before it stands before it
            self._try(f"has not kept {path.name}", lambda: self._tracker.keep(kind, path, step))
        forget(path)

    def _go_back(self, step: int) -> None:
        self._write(last=False)
        self._reported.go_back(step)
        self._try("cannot go back", lambda: self._tracker.rewind(step))

    def _try(self, failure: str, action: Callable[[], None]) -> None:
        if self._off and failure != "could not be ended":
            return
        try:
            action()
        except Exception as error:
            self._say(failure, f"{failure}: {one_line(error)}")

    def _say(self, kind: str, text: str) -> None:
        """Log a failure, once for each kind."""
        if kind not in self._said:
            self._said.add(kind)
            log.warning("%s %s", self._tracker.TITLE, text)


def one_line(error: BaseException) -> str:
    """The text of an exception on one line, at most 300 characters in whole words; its type if it says nothing."""
    return textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
