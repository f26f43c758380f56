"""Make Linux kill this process as soon as its parent process dies."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

SET_PDEATHSIG = 1
"""Option of Linux's prctl: this process gets a signal when the thread that is its parent ends."""


def end_with(parent: int) -> None:
    """Have this process killed when its parent dies: after a ``kill -9`` of a command, its processes would go on
    writing into a run folder that a new start uses.

    Args:
        parent: number of the process that must be the parent.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)
