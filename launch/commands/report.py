"""``trireme report``: write an HTML page about one or several training runs."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_debug

DESCRIPTION = """Write one HTML file that shows a run, compares several, or shows a study or sweep: curves,
evaluations, samples, memory, traffic, checkpoints, restarts and faults, recipes and what differs. It loads nothing from
the network."""
EXAMPLES = """examples:
  trireme report runs/persimmon_stdlib
  trireme report runs/persimmon_stdlib --watch        # while it trains; the open page follows
  trireme report runs/one runs/two --out both.html
  trireme report runs/persimmon_stdlib_sweep
"""


EVERY = 5.0
"""Seconds between two pages of ``--watch``."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run folder, or the folder of a study or sweep")
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="page to write (default: report.html in the run folder; for several runs, in the working folder)",
    )
    parser.add_argument("--watch", action="store_true", help="keep rewriting the page until the run ends")
    parser.add_argument(
        "--every", type=seconds, metavar="SECONDS", help=f"seconds between two writes with --watch (default: {EVERY:g})"
    )
    add_debug(parser)


def seconds(text: str) -> float:
    """Seconds from half a one, as a type for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.5 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time in seconds; write 0.5 or more, such as 5")
    return value


def run(options: argparse.Namespace) -> None:
    from ...errors import Problem, UserError
    from .. import make_report

    if options.every is not None and not options.watch:
        raise UserError(Problem("--every", "is the time between two pages of --watch", "add --watch", options.every))
    options.every = options.every or EVERY
    make_report.run(options)


COMMAND = Command(
    "report",
    "RUN...",
    "write a page that shows runs: curves, memory, faults, recipes",
    run,
    arguments,
    description=DESCRIPTION,
    examples=EXAMPLES,
)
