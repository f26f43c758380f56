"""File locks that are released when the process that holds them ends, even if it is killed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from ...errors import Problem, UserError


def lock_file(path: Path, wait: bool) -> int | None:
    """A descriptor that holds a lock until it is closed; None if another holds it and ``wait`` is false."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError as error:
        os.close(descriptor)
        why = f"lies on a file system without locks: {error.strerror}"
        raise UserError(Problem("run.dir", why, "choose a folder on another disk", str(path.parent))) from None
    return descriptor
