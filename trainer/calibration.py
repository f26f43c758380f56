"""Take the first batches of a recipe's training data as model inputs, to calibrate GPTQ when a model is exported."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from .recipe_corpus import recipe_corpus

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig


def calibration_inputs(recipe: RecipeConfig, rows: int) -> list[dict[str, Any]]:
    """Arguments of the model for the first ``rows`` rows of the run's order, in its micro-batches."""
    corpus = recipe_corpus(recipe, recipe.data)
    found, taken = [], 0
    steps = -(-rows // recipe.trainer.global_batch_size)
    with closing(corpus.train_batches({}, 0, steps)) as batches:
        for batch in batches:
            for micro in batch.micro_batches:
                if taken < rows:
                    found.append(micro.inputs)
                    taken += micro.rows
    return found
