"""``trireme predict``: write a trained model's predictions for a recipe's evaluation data, under the recipe's plan.

Ranks are started as for training; ``torchrun --nproc-per-node 2 -m trireme.launch.predict RECIPE`` runs this file too.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .command import Command
from .failures import leave
from .quick_imports import quick_imports
from .recipe_arguments import PREDICTION, PREDICTION_EXAMPLES, add_prediction_arguments
from .with_weights import option, show, with_weights

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig

ENTRY = "trireme.launch.predict"


def main(argv: Sequence[str] | None = None, prog: str = f"python -m {ENTRY}") -> int:
    """Entry point for ranks and launchers; returns the exit code."""
    command = Command("predict", "", PREDICTION, run, add_prediction_arguments, "", PREDICTION_EXAMPLES, True)
    return command.call(argv, prog)


def run(options: argparse.Namespace) -> None:
    """Predict: as a rank if a launcher started this process, else in this process or in new ranks.

    Raises:
        UserError: something the user can mend.
        RanksFailed: a rank failed.
    """
    from ..trainer.prediction_files import check_out

    check_out(options.out)
    further = ["--on", options.on, "--out", options.out, *option("--limit", options.limit)]
    with_weights(options, _go, ENTRY, further)


def _go(recipe: RecipeConfig, options: argparse.Namespace) -> None:
    with quick_imports():
        from ..trainer.predict_only import predict

    result = predict(recipe, options.out, options.checkpoint, options.ema, options.on, options.limit)
    show(result, as_json=False)
    if os.environ.get("RANK", "0") == "0":
        print(f"predictions are in {options.out}", flush=True)


if __name__ == "__main__":
    leave(main())
