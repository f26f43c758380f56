"""Print the failure that ended a SLURM job: the first one among the ranks of all its machines.

``python -m trireme.launch.slurm.job_failure LOGS RANKS CODE`` reads the error files that ranks and launchers have left
in ``LOGS``. Failures after the first are left out, since they follow from it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from ..error_report import RanksFailed, guard
from ..failures import first_message, raise_failure


def main(argv: Sequence[str] | None = None) -> int:
    """Show the failure; returns its exit code."""
    logs, ranks, code = sys.argv[1:] if argv is None else argv
    return guard(lambda: judge(Path(logs), int(ranks), int(code)))


def judge(logs: Path, ranks: int, code: int) -> None:
    """Raise the failure of the rank that failed first.

    Raises:
        UserError: a rank refused what the user gave.
        RanksFailed: a rank failed otherwise.
    """
    if message := first_message(logs):
        raise RanksFailed(message)
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    files = {int(file.parent.name): file for file in logs.glob("attempt_0/*/error.json")}
    if not files:
        raise RanksFailed(f"no rank has left an error file; srun ended with {code}, see its messages above")
    failures = {rank: ProcessFailure(rank, 0, 1, str(file)) for rank, file in files.items()}
    raise_failure(failures, ranks, lambda rank: str(files[rank].with_name("stderr.log")) if rank else "")


if __name__ == "__main__":
    sys.exit(main())
