"""Read and write ``slurm.json`` in a run folder: the number and log file of the SLURM job that was submitted.

``trireme logs``, ``trireme cancel`` and ``trireme jobs`` need no database: squeue gives the path of a job's script, and
``slurm.json`` is in the folder of the script.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...errors import Problem, UserError

FILE = "slurm.json"


@dataclass
class Record:
    """A job and the runs that it trains."""

    job: str
    """Number of the job; ``12_3`` for a task of an array."""
    log: str
    """File with the job's output; for an array, with SLURM's patterns."""
    runs: list[str] = field(default_factory=list)
    """Run folders of the tasks of an array, by their number; empty for one run."""

    def write(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1) + "\n")


def read_record(folder: Path) -> Record | None:
    """The record in ``folder``; None if there is none."""
    try:
        return Record(**json.loads((folder / FILE).read_text()))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, TypeError) as error:
        fix = "remove the file if no job of this folder is running"
        raise UserError(Problem(str(folder / FILE), f"cannot be read: {error}", fix)) from None
