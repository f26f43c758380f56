"""``trireme plans``: list the kinds of parallelism; with a recipe, compare their memory and communication for it."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_recipe_arguments

EXAMPLES = """examples:
  trireme plans
  trireme plans pretrain/persimmon_stdlib --nproc 2
  trireme plans finetune/text model=llama3_8b plan.precision=bf16 --nproc 8
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser, required=False)


def run(options: argparse.Namespace) -> None:
    if options.recipe is None:
        _refuse_idle(options)
        from ..listing import show_plans

        show_plans()
    else:
        from ..planning import compare_plans

        compare_plans(options)


def _refuse_idle(options: argparse.Namespace) -> None:
    from ...errors import Problem, UserError

    given = {"--nproc": options.nproc, "--recipe-dir": next(iter(options.recipe_dir), None)}
    fix = f"name one: trireme plans RECIPE{f' --nproc {options.nproc}' if options.nproc is not None else ''}"
    problems = [
        Problem(option, "is about a recipe, and none is given", fix, value)
        for option, value in given.items()
        if value is not None
    ]
    if problems:
        raise UserError(*problems)


COMMAND = Command(
    "plans",
    "[RECIPE ...]",
    "list plans; with a recipe, compare them for it",
    run,
    arguments,
    description="List plans; with a recipe, show what each plan would need, and which one plan=auto would choose.",
    examples=EXAMPLES,
)
