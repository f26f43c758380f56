"""``trireme logs``: print the log of a run, and optionally follow it as it grows."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import count

EXAMPLES = """examples:
  trireme logs runs/persimmon_stdlib
  trireme logs runs/persimmon_stdlib -f -n 20
  trireme logs runs/two --rank 1
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--follow", "-f", action="store_true", help="print new lines until the job is over")
    parser.add_argument("--rank", type=count, metavar="N", help="log of this rank (default: of the job, with rank 0)")
    parser.add_argument("--lines", "-n", type=count, metavar="N", help="only the last N lines")


def run(options: argparse.Namespace) -> None:
    from ..slurm.show_logs import show_logs

    show_logs(options.run, options.rank, options.follow, options.lines)


COMMAND = Command("logs", "RUN", "show the log of a run; -f follows it", run, arguments, examples=EXAMPLES)
