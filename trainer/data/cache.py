"""The cache folder: things that are built once, by one process, and found by all others.

What is built under ``<name>.partial`` is renamed to ``<name>`` when complete, under a file lock: many processes may ask
at once, and an interrupted build leaves nothing that could be mistaken for a finished one.
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
    """The folder that a recipe's ``data.cache_dir`` means; created if it is not there."""
    root = Path(cache_dir or os.environ.get("TRIREME_CACHE") or "~/.cache/trireme").expanduser()
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            Problem("data.cache_dir", f"the folder cannot be created: {error.strerror}", OTHER_FOLDER, str(root))
        ) from None
    return root


@contextlib.contextmanager
def built_once(folder: Path) -> Iterator[Path | None]:
    """Gives an empty folder to build in, which becomes ``folder``; or None when ``folder`` is there.

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
        shutil.rmtree(scratch, ignore_errors=True)  # left by a killed process: the lock says nobody works in it
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
    """`tokenizers` raises a bare Exception with the system's message, all others an OSError."""
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "(os error 28)" in str(error)
