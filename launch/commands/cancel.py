"""``trireme cancel``: let a SLURM job save a checkpoint and then end, or end it at once (``--now``)."""

from __future__ import annotations

import argparse

from ..command import Command

EXAMPLES = """examples:
  trireme cancel runs/persimmon_stdlib
  trireme cancel 4711 --now
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RUN|JOB", help="run folder, or number of the job")
    parser.add_argument("--now", action="store_true", help="end it at once, nothing is saved")
    parser.add_argument("--wait", type=float, default=600.0, metavar="S", help="seconds to save in (default: 600)")


def run(options: argparse.Namespace) -> None:
    from ..slurm.cancel import cancel

    cancel(options.target, options.now, options.wait)


COMMAND = Command(
    "cancel",
    "RUN|JOB",
    "end a SLURM job once it has saved; --now at once",
    run,
    arguments,
    description="End a job on the SLURM cluster once its ranks have saved; the same `trireme launch` goes on from "
    "there. A run of this machine is no job: SIGTERM lets it save and leave.",
    examples=EXAMPLES,
)
