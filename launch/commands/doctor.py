"""``trireme doctor``: report this machine's software and hardware, and what it lacks for each parallelism plan."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_debug


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON list, for programs")
    add_debug(parser)


def run(options: argparse.Namespace) -> None:
    from ..describe_machine import show_findings
    from ..start_process import prepare_process

    prepare_process()
    show_findings(options.json)


COMMAND = Command(
    "doctor",
    "",
    "report what this machine has and what plans need",
    run,
    arguments,
    examples="examples:\n  trireme doctor\n  trireme doctor --json > machine.json\n",
)
