"""``trireme recipes``: list the recipes that can be trained by name."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_recipe_dir


def run(options: argparse.Namespace) -> None:
    from ..listing import show_recipes

    show_recipes(options.recipe_dir)


COMMAND = Command(
    "recipes",
    "",
    "list recipes",
    run,
    add_recipe_dir,
    description="List recipes: your own folders, ./recipes, and those that come with trireme.",
    examples="examples:\n  trireme recipes\n  trireme recipes --recipe-dir my\n",
)
