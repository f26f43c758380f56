"""``trireme evaluate``: compute the metrics of a trained model on held-out or test data, under any parallelism plan."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import EVALUATION, EVALUATION_EXAMPLES, add_evaluation_arguments


def run(options: argparse.Namespace) -> None:
    from .. import evaluate

    evaluate.run(options)


COMMAND = Command(
    "evaluate",
    "RECIPE ...",
    "print held-out metrics of a checkpoint (any plan)",
    run,
    add_evaluation_arguments,
    description=EVALUATION,
    examples=EVALUATION_EXAMPLES,
    may_be_rank=True,
)
