"""``trireme evaluate``: compute a trained model's metrics on a recipe's evaluation data, under the recipe's plan.

The run folder is not changed. Ranks are started as for training, or by a launcher:
``torchrun --nproc-per-node 2 -m trireme.launch.evaluate RECIPE``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .command import Command
from .failures import leave
from .quick_imports import quick_imports
from .recipe_arguments import EVALUATION, EVALUATION_EXAMPLES, add_evaluation_arguments
from .with_weights import option, show, with_weights

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig

ENTRY = "trireme.launch.evaluate"


def main(argv: Sequence[str] | None = None, prog: str = f"python -m {ENTRY}") -> int:
    """Entry point for ranks and launchers; returns the exit code."""
    command = Command("evaluate", "", EVALUATION, run, add_evaluation_arguments, "", EVALUATION_EXAMPLES, True)
    return command.call(argv, prog)


def run(options: argparse.Namespace) -> None:
    """Evaluate: as a rank if a launcher started this process, else in this process or in new ranks.

    Raises:
        UserError: something the user can mend.
        RanksFailed: a rank failed.
    """
    with_weights(options, _go, ENTRY, [*option("--on", options.on), *(["--json"] if options.json else [])])


def _go(recipe: RecipeConfig, options: argparse.Namespace) -> None:
    with quick_imports():
        from ..trainer.evaluate_only import evaluate

    show(evaluate(recipe, options.checkpoint, options.ema, options.on), options.json)


if __name__ == "__main__":
    leave(main())
