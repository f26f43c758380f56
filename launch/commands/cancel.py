"""``trireme cancel``: let a SLURM job save a checkpoint and then end, or end it at once (``--now``)."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import seconds

EXAMPLES = """examples:
  trireme cancel runs/persimmon_stdlib
  trireme cancel 4711 --now
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("target", metavar="RUN|JOB", help="run folder, or number of the job")
    parser.add_argument("--now", action="store_true", help="end it at once, without saving")
    parser.add_argument("--wait", type=seconds, metavar="S", help="seconds that the run gets to save (default: 600)")


def run(options: argparse.Namespace) -> None:
    from ...errors import Problem, UserError
    from ..slurm.cancel import cancel

    if options.now and options.wait is not None:
        why = "is a time to save in, and --now ends the job at once"
        raise UserError(Problem("--wait", why, "leave one of them out", options.wait))
    cancel(options.target, options.now, 600.0 if options.wait is None else options.wait)


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
