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
        from ..listing import show_plans

        show_plans()
    else:
        from ..planning import compare_plans

        compare_plans(options)


COMMAND = Command(
    "plans",
    "[RECIPE ...]",
    "list plans; with a recipe, compare them for it",
    run,
    arguments,
    description="List plans; with a recipe, show what each plan would need, and which one plan=auto would choose.",
    examples=EXAMPLES,
)
