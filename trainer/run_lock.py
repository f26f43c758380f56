"""Lock a run folder while a run writes to it, because two runs in one folder would overwrite each other's files.

It is a lock of the operating system (POSIX record lock). It is released when the process ends, however it ends, and
forked worker processes do not inherit it.
"""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path

from ..errors import Problem, UserError

NAME = ".in_use"


class RunLock:
    """Holds ``folder`` from ``take`` to ``release``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._file: int | None = None

    def take(self) -> None:
        """Hold the folder.

        Raises:
            UserError: another process holds it.
        """
        try:
            file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # an unwritable folder is reported when files are written
            return
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            holder = os.read(file, 200).decode(errors="replace").strip() or "another process"
            os.close(file)
            fix = "wait for that run or end it, or choose another run.dir"
            raise UserError(Problem("run.dir", f"is in use by {holder}", fix, str(self.path.parent))) from None
        except OSError:  # some network file systems have no locks
            os.close(file)
            return
        os.ftruncate(file, 0)
        os.write(file, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._file = file

    def release(self) -> None:
        """Let go of the folder; closing the file gives the lock back."""
        if self._file is not None:
            os.close(self._file)
            self._file = None


def is_held(folder: Path) -> bool:
    """Whether another process of this machine writes to the folder. Never call it in the process that holds the lock:
    closing any descriptor of the file gives a process's own lock back."""
    try:
        file = os.open(folder / NAME, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError | PermissionError)
    finally:
        os.close(file)
    return False
