"""Recognise ranks that a launcher has restarted, so that ``--fresh`` and ``--resume PATH`` act only once per launch.

An elastic launcher restarts ranks after a failure (``--max-restarts``), maybe fewer of them; SLURM queues a job again
after a preemption or at the job's own request. Restarted ranks run the same command line. They must neither move the
run folder aside again for ``--fresh`` nor go back to the checkpoint of ``--resume``, since the launch has saved newer
checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from .checkpoint.layout import MANIFEST, complete_checkpoints

if TYPE_CHECKING:
    from .checkpoint.store import Checkpoints  # imports torch, which the process that starts ranks does without

MARK = ".launch"
"""File in the run folder, on every node with a disk of its own. Its modification time is the start of the launch (times
of one file system can be compared), its text names the launch."""
COUNTS = {"elastic": "TORCHELASTIC_RESTART_COUNT", "slurm": "SLURM_RESTART_COUNT"}
"""Launcher that may restart ranks -> environment variable with the number of restarts."""


def attempt() -> int:
    """Number of restarts of this launch so far."""
    return sum(int(os.environ.get(count, "0")) for count in COUNTS.values())


def note_launch(run_dir: Path, resume: str, submitted: bool = False) -> None:
    """Write the mark of a launch that begins now; ``submitted``: it is a job that has no number yet."""
    names = {} if submitted else _names()
    with contextlib.suppress(OSError):  # a full disk is reported when the run folder or a checkpoint is written
        (run_dir / MARK).write_text(json.dumps({"resume": resume, **names}))


def launch_is_noted(run_dir: Path) -> bool:
    """Whether the mark is that of this launch. An attempt that ended too early leaves an older mark, or none."""
    try:
        noted, own = json.loads((run_dir / MARK).read_text()), _names()
    except (OSError, ValueError):
        return False
    again = [name for name, count in COUNTS.items() if int(os.environ.get(count, "0"))]
    return not noted.keys() & own.keys() or any(noted.get(name) == own[name] for name in again)


def saved_by_launch(store: Checkpoints, run_dir: Path) -> Path | None:
    """The newest complete checkpoint that this launch has written, if there is one; a collective call."""
    return store.newest_of(lambda: _since(store.root, run_dir))


def _since(root: Path, run_dir: Path) -> list[Path]:
    if not launch_is_noted(run_dir):
        return []
    began = (run_dir / MARK).stat().st_mtime_ns
    return [folder for folder in complete_checkpoints(root) if (folder / MANIFEST).stat().st_mtime_ns >= began]


def _names() -> dict[str, str]:
    """Launcher that may restart ranks -> name of the launch, which is the same for all attempts."""
    run = os.environ.get("TORCHELASTIC_RUN_ID", "")
    if run == "none":  # torchrun without a rendezvous: one agent on this machine starts all attempts
        started = Path(f"/proc/{os.getppid()}/stat").read_text().rpartition(")")[2].split()[19]  # in ticks since boot
        run = f"agent {os.getppid()} {started}"
    return {"elastic": run, "slurm": os.environ.get("SLURM_JOB_ID", "")}
