"""Ranks that are started again: by an elastic launcher after a failure (``--max-restarts``), maybe fewer of them, or by
SLURM, which queues a job again after a preemption or when it asks for that itself.

They run the same command line, so what it says of the beginning must not be done twice: ``--fresh`` moved the old run
aside when the launch began, and ``--resume PATH`` was where it began from. What the launch has saved since is newer.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from .checkpoint.layout import MANIFEST, complete_checkpoints, verify
from .checkpoint.store import Checkpoints

MARK = ".launch"
"""File in the run folder whose time says when the launch began; times of one file system can be compared."""


def attempt() -> int:
    """How often the ranks of this launch have been started again."""
    counts = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
    return sum(int(os.environ.get(name, "0")) for name in counts)


def note_launch(run_dir: Path, resume: str) -> None:
    """Remember that a launch begins here; on one rank."""
    with contextlib.suppress(OSError):  # a full disk is another's news
        (run_dir / MARK).write_text(resume)


def launch_is_noted(run_dir: Path) -> bool:
    """Not if an earlier attempt ended before it came to that."""
    return (run_dir / MARK).is_file()


def find_after_restart(store: Checkpoints, run_dir: Path, resume: str) -> Path | None:
    """The newest whole checkpoint that this launch has written; if there is none, what the launch began from.

    Raises:
        UserError: as ``Checkpoints.find``.
    """
    if resume == "auto":
        return store.find(resume)
    newest = _newest_since(store.root, run_dir / MARK) if store.mesh.is_main else None
    newest = store.mesh.broadcast_object(newest)
    return store.find(newest if isinstance(newest, str) else resume)


def _newest_since(root: Path, mark: Path) -> str | None:
    if not mark.is_file():
        return None
    began = mark.stat().st_mtime_ns
    for folder in complete_checkpoints(root):
        if (folder / MANIFEST).stat().st_mtime_ns >= began and verify(folder) is None:
            return str(folder)
    return None
