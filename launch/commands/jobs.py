"""``trireme jobs``: list jobs that trireme submitted to a SLURM cluster, or those of one sweep with their metric."""

from __future__ import annotations

import argparse

from ..command import Command

EXAMPLES = """examples:
  trireme jobs
  trireme jobs runs/persimmon_stdlib_sweep      # a table of its jobs, local or of a SLURM array
  trireme launch pretrain/persimmon_stdlib plan=ddp launch=slurm launch.nodes=2     # submits one
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("sweep", metavar="SWEEP", nargs="?", help="folder of a sweep: show its jobs and the best one")


def run(options: argparse.Namespace) -> None:
    if options.sweep is not None:
        from pathlib import Path

        from ..sweep_jobs import show_sweep

        show_sweep(Path(options.sweep).expanduser())
        return
    from ..slurm.job_queue import show_jobs

    show_jobs()


COMMAND = Command(
    "jobs",
    "[SWEEP]",
    "list the jobs that trireme submitted to a SLURM cluster, or those of a sweep",
    run,
    arguments,
    description="List the jobs that `trireme launch` has submitted to the SLURM cluster, with state and step. Runs of "
    "this machine are not jobs: `trireme logs RUN` follows one. With the folder of a sweep, local or an array of the "
    "cluster: a table of its jobs, how far each is, its metric, and the best.",
    examples=EXAMPLES,
)
