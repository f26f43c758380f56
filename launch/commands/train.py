"""``trireme train``: train a recipe, or resume its run if that was stopped."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import TRAINING_EXAMPLES, add_training_arguments


def run(options: argparse.Namespace) -> None:
    from .. import train

    train.run(options)


COMMAND = Command(
    "train",
    "RECIPE ...",
    "train a recipe; the same command resumes it",
    run,
    add_training_arguments,
    examples=TRAINING_EXAMPLES,
    may_be_rank=True,
)
