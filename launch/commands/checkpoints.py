"""``trireme checkpoints``: list the checkpoints of a run, and report incomplete or damaged ones."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_debug

EXAMPLES = """examples:
  trireme checkpoints runs/persimmon_stdlib
  trireme checkpoints runs/persimmon_stdlib --verify --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run folder, its checkpoints folder, or one checkpoint")
    parser.add_argument("--verify", action="store_true", help="read every file and compare its digest")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add_debug(parser)


def run(options: argparse.Namespace) -> int:
    from ..list_checkpoints import show_checkpoints

    return show_checkpoints(options.run, options.verify, options.json)


COMMAND = Command(
    "checkpoints",
    "RUN",
    "list checkpoints; --verify checks every file",
    run,
    arguments,
    description="List the checkpoints of a run; exit code 1 if one is damaged or not finite.",
    examples=EXAMPLES,
)
