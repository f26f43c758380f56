"""Start the ranks of one machine of a SLURM job. The machines of the job connect through torch's rendezvous.

``srun --ntasks-per-node=1 python -m trireme.launch.slurm.job_node --ranks 8 --logs DIR RECIPE key=value ...``

This does what torchrun does, with the same elastic agent and c10d rendezvous, and two things more. Signals are passed
on to the ranks, which get time to save. Exit codes are those of ``trireme train`` (75: stopped early, saved), while
torchrun only has 1.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ..elastic import Machines, start_ranks
from ..error_report import guard
from .job_task import first_host, meeting_port


def main(argv: Sequence[str] | None = None) -> int:
    """Start the ranks of this machine and wait for them; returns the exit code."""
    parser = argparse.ArgumentParser("python -m trireme.launch.slurm.job_node", description=__doc__, allow_abbrev=False)
    parser.add_argument("--ranks", type=int, required=True, metavar="N", help="ranks on each machine")
    parser.add_argument(
        "--logs", type=Path, required=True, metavar="DIR", help="gets the output of ranks but the first"
    )
    parser.add_argument("--max-restarts", type=int, default=0, metavar="N", help="after failures")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="RECIPE ...", help="as for trireme train")
    options = parser.parse_args(argv)
    logs: Path = options.logs

    def start() -> None:
        machines = this_machine(logs.name)
        start_ranks(
            options.ranks, options.arguments, logs.parent.parent, max_restarts=options.max_restarts, machines=machines
        )

    return guard(start, "--debug" in options.arguments)


def this_machine(run_id: str) -> Machines:
    """This machine's place in the job, from SLURM's variables; there is one task on each machine."""
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "localhost")
    host = os.environ.get("MASTER_ADDR") or first_host(hosts)
    port = os.environ.get("MASTER_PORT") or str(meeting_port())
    return Machines(
        count=int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES", "1")),
        index=int(os.environ.get("SLURM_NODEID", "0")),
        endpoint=f"{host}:{port}",
        address=os.environ.get("SLURMD_NODENAME") or os.uname().nodename,
        run_id=run_id,
    )


if __name__ == "__main__":
    sys.exit(main())
