"""Record which signals ended forked ranks, since torch reports only one of the failed ranks.

When a rank is killed, its peers fail a moment later because their connection is gone. torch checks its ranks only now
and then; if several have ended by then, it names one of them, which may be a peer.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

PAUSE = 0.01
"""Seconds between two checks."""
TOGETHER = 10.0
"""Seconds after the first rank has ended in which signals are recorded; later it is torch that kills ranks."""


class RankExits:
    """Context that watches ranks, which write their process ids into ``folder/rankN.pid``."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.signals: dict[int, int] = {}
        """Number of the signal that ended a rank, by rank."""
        self._first: float | None = None
        self._seen: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> RankExits:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(PAUSE):
            for file in self.folder.glob("rank*.pid"):
                with suppress(OSError, ValueError):  # half written, or torch has seen its end already
                    self._check(int(file.stem.removeprefix("rank")), int(file.read_text()))

    def _check(self, rank: int, pid: int) -> None:
        """Record the signal that ended a rank, if one did, and leave its exit status for torch to collect."""
        if rank in self._seen:
            return
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if ended is None:
            return
        self._seen.add(rank)
        self._first = self._first or time.monotonic()
        if ended.si_code in (os.CLD_KILLED, os.CLD_DUMPED) and time.monotonic() - self._first < TOGETHER:
            self.signals[rank] = ended.si_status
