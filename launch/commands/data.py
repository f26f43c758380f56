"""``trireme data``: show a recipe's data sets and some of their samples, before any training."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_recipe_arguments, count

DESCRIPTION = """Show what a recipe trains on, before any training: its sets with their sizes, lengths and labels, what
is left out, and samples as the collator gives them to the model, those of the first step."""
EXAMPLES = """examples:
  trireme data pretrain/persimmon_stdlib
  trireme data vision/digits_vit --samples 8 --html digits.html
  trireme data my/recipe.yaml --set held_out data.held_out=0.1
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser, processes=False)
    parser.add_argument("--samples", type=count, default=3, metavar="N", help="number of samples to show (default: 3)")
    parser.add_argument(
        "--set",
        metavar="SET",
        help="set to show: train, held_out, test or a name in data.eval_sets (default: sizes of all, samples of train)",
    )
    parser.add_argument("--html", metavar="FILE", help="also write a page with images and audio clips")


def run(options: argparse.Namespace) -> None:
    from .. import show_data

    show_data.run(options)


COMMAND = Command(
    "data",
    "RECIPE ...",
    "show the sets and samples that a recipe trains on",
    run,
    arguments,
    description=DESCRIPTION,
    examples=EXAMPLES,
)
