"""``trireme predict``: write a trained model's prediction for each sample of a data set, under any parallelism plan."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import PREDICTION, PREDICTION_EXAMPLES, add_prediction_arguments


def run(options: argparse.Namespace) -> None:
    from .. import predict

    predict.run(options)


COMMAND = Command(
    "predict",
    "RECIPE ...",
    "write a model's predictions for a set (any plan)",
    run,
    add_prediction_arguments,
    description=PREDICTION,
    examples=PREDICTION_EXAMPLES,
    may_be_rank=True,
)
