"""``trireme search``: search for the best values of a recipe's keys (hyperparameter search)."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_recipe_arguments, positive

DESCRIPTION = """Try values of a recipe's keys in trials, each a run in a folder of its own, and find the best. The same
command resumes a study that was interrupted. Run at the same time in several shells, it adds workers to one study."""
EXAMPLES = """examples:
  trireme search pretrain/persimmon_stdlib search=optuna 'search.space={optimizer.lr:{low:1e-5,high:1e-2,log:true}}'
  trireme search my/recipe.yaml search.trials=60 plan=ddp --nproc 2
  trireme search runs/persimmon_stdlib_search --best
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.add_argument("--jobs", type=positive, metavar="K", help="trials at once (default: search.jobs)")
    parser.add_argument("--best", action="store_true", help="train the best recipe that the study has found")
    parser.add_argument("--table", action="store_true", help="print the table of the study, also while the search runs")
    parser.add_argument(
        "--here", action="store_true", help="search on this machine although the recipe has launch=slurm"
    )
    parser.add_argument("--fresh", action="store_true", help="move an existing study aside and start over")


def run(options: argparse.Namespace) -> None:
    from ...errors import Problem, UserError
    from ..search.require_optuna import refuse_without_optuna

    shows = [name for name in ("best", "table") if getattr(options, name)]
    ignored = ["jobs", "here"] + (["fresh"] if options.table else []) if shows else []
    problems: list[Problem | str] = [
        Problem(f"--{name}", f"is about a search, and --{shows[0]} searches nothing", "leave one of them out")
        for name in ignored
        if getattr(options, name)
    ]
    if options.table and options.nproc is not None:
        why = "is about trials, and --table starts none"
        problems.append(Problem("--nproc", why, "leave one of them out", options.nproc))
    if len(shows) > 1:
        problems.append(Problem("--best", "trains, and --table prints", "leave one of them out"))
    if problems:
        raise UserError(*problems)

    refuse_without_optuna()
    from ..search.start_search import search
    from ..start_process import prepare_process

    prepare_process()
    search(options)


COMMAND = Command(
    "search",
    "RECIPE ...",
    "find the best values of a recipe's keys by trials",
    run,
    arguments,
    description=DESCRIPTION,
    examples=EXAMPLES,
)
