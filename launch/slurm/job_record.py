"""What a run folder knows of its job: ``slurm.json``, written when the job is submitted.

So that ``trireme logs``, ``trireme cancel`` and ``trireme jobs`` find each other's things without a database: SLURM
tells the path of a job's script, the file beside it tells the rest.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ...errors import Problem, UserError

FILE = "slurm.json"


@dataclass
class Record:
    """A job and what it trains."""

    job: str
    """Number of the job; of a task of an array ``12_3``."""
    log: str
    """File with its output; SLURM's patterns where it is one for each task of an array."""
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
        fix = "remove it, if no job of this folder is going on"
        raise UserError(Problem(str(folder / FILE), f"cannot be read: {error}", fix)) from None
