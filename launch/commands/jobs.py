"""``trireme jobs``: list this user's jobs on a SLURM cluster."""

from __future__ import annotations

import argparse

from ..command import Command

EXAMPLES = """examples:
  trireme jobs
  trireme launch pretrain/persimmon_stdlib plan=ddp launch=slurm launch.nodes=2     # submits one
"""


def run(options: argparse.Namespace) -> None:
    from ..slurm.job_queue import show_jobs

    show_jobs()


COMMAND = Command(
    "jobs",
    "",
    "list your jobs on the SLURM cluster, with their steps",
    run,
    description="List the jobs that `trireme launch` has submitted to the SLURM cluster, with state and step. Runs of "
    "this machine are not jobs: `trireme logs RUN` follows one.",
    examples=EXAMPLES,
)
