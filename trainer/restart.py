"""Ranks that are started again: by an elastic launcher after a failure (``--max-restarts``), maybe fewer of them, or by
SLURM, which queues a job again after a preemption or when it asks for that itself.

They run the same command line, so what it says of the beginning must not be done twice: ``--fresh`` moved the old run
aside when the launch began, and ``--resume PATH`` was where it began from. What the launch has saved since is newer.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from .checkpoint.layout import MANIFEST, complete_checkpoints
from .checkpoint.store import Checkpoints

MARK = ".launch"
"""File in the run folder, on every node with a disk of its own. Its time says when the launch began (times of one file
system can be compared), its text which launch it was."""
COUNTS = {"elastic": "TORCHELASTIC_RESTART_COUNT", "slurm": "SLURM_RESTART_COUNT"}
"""Who starts ranks again, and where they say how often."""


def attempt() -> int:
    """How often the ranks of this launch have been started again."""
    return sum(int(os.environ.get(count, "0")) for count in COUNTS.values())


def note_launch(run_dir: Path, resume: str, submitted: bool = False) -> None:
    """Remember that a launch begins here; ``submitted``: as a job that has no number yet."""
    names = {} if submitted else _names()
    with contextlib.suppress(OSError):  # a full disk is another's news
        (run_dir / MARK).write_text(json.dumps({"resume": resume, **names}))


def launch_is_noted(run_dir: Path) -> bool:
    """Not if an earlier attempt ended before it came to that: then the mark is an earlier launch's, or missing."""
    try:
        noted, own = json.loads((run_dir / MARK).read_text()), _names()
    except (OSError, ValueError):
        return False
    again = [name for name, count in COUNTS.items() if int(os.environ.get(count, "0"))]
    return not noted.keys() & own.keys() or any(noted.get(name) == own[name] for name in again)


def saved_by_launch(store: Checkpoints, run_dir: Path) -> Path | None:
    """The newest whole checkpoint that this launch has written, if there is one; a collective call."""
    return store.newest_of(lambda: _since(store.root, run_dir))


def _since(root: Path, run_dir: Path) -> list[Path]:
    if not launch_is_noted(run_dir):
        return []
    began = (run_dir / MARK).stat().st_mtime_ns
    return [folder for folder in complete_checkpoints(root) if (folder / MANIFEST).stat().st_mtime_ns >= began]


def _names() -> dict[str, str]:
    """By who starts ranks again, a name that is the same for all attempts of a launch."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if run == "none":  # torchrun without a rendezvous: this machine's agent is the one of all attempts
        started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]  # in ticks since boot
        run = f"agent {os.getppid()} {started}"
    return {"elastic": run, "slurm": os.environ.get("SLURM_JOB_ID", "")}
