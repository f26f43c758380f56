"""The cache folder for prepared data: each entry is built once by one process, and all other processes read it.

An entry is built under ``<name>.partial``, under a file lock, and renamed to ``<name>`` when it is complete. So many
processes may ask for it at once, and an interrupted build is never mistaken for a complete one.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ...errors import Problem, UserError

log = logging.getLogger("trireme.data")
OTHER_FOLDER = "set data.cache_dir or TRIREME_CACHE to a folder you may write to"


def cache_root(cache_dir: str | None) -> Path:
    """The cache folder of a recipe's ``data.cache_dir``, created if needed."""
    root = Path(os.path.expanduser(cache_dir or os.environ.get("TRIREME_CACHE") or "~/.cache/trireme"))
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            Problem("data.cache_dir", f"the folder cannot be created: {error.strerror}", OTHER_FOLDER, str(root))
        ) from None
    return root


@contextlib.contextmanager
def built_once(folder: Path) -> Iterator[Path | None]:
    """Context with an empty folder to build in, which then becomes ``folder``; with None if ``folder`` exists.

    Raises:
        UserError: the cache cannot be written, or its disk is full.
    """
    if folder.is_dir():
        yield None
        return
    with _lock(folder):
        if folder.is_dir():  # another process finished while this one waited
            yield None
            return
        scratch = folder.with_name(folder.name + ".partial")
        shutil.rmtree(scratch, ignore_errors=True)  # left by a killed process, since this process holds the lock
        try:
            scratch.mkdir()
            yield scratch
            os.rename(scratch, folder)
        except Exception as error:
            if _disk_is_full(error):
                raise UserError(
                    Problem(
                        "data.cache_dir",
                        "no space is left (while preparing, documents and tokens "
                        "need about three times the size of the text)",
                        "free some, or set data.cache_dir or TRIREME_CACHE to a larger disk",
                        str(folder.parent),
                    )
                ) from None
            raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(f"{folder}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            log.info("another process prepares the data; waiting for it")
            lock.acquire()
    except OSError as error:  # not permitted, or a read-only file system
        raise UserError(
            Problem("data.cache_dir", f"cannot be written: {error.strerror}", OTHER_FOLDER, str(folder.parent))
        ) from None
    try:
        yield
    finally:
        lock.release()


def _disk_is_full(error: Exception) -> bool:
    """Whether an error means a full disk: `tokenizers` raises a bare Exception with the system's message for it."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "(os error 28)" in str(error)
