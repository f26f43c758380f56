"""Write a trained model's prediction for each sample of a data set to one file (``trireme predict``).

It works under any parallelism plan. Ranks send small records to rank 0 (``records.py``), which writes them in the order
of the data set.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .collective import on_main
from .data.data_config import HELD_OUT
from .load_trained import trained
from .prediction_rows import write_predictions, writing_all
from .records import Records

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig


def predict(
    recipe: RecipeConfig,
    out: str,
    checkpoint: str | None = None,
    ema: bool = False,
    on: str = HELD_OUT,
    limit: int | None = None,
) -> dict[str, Any]:
    """Write a row per sample of a set, on the existing ranks; returns what ``evaluate`` returns, equal on all ranks.

    Args:
        out: a file that ends in ``.jsonl`` or ``.parquet``; an existing one is replaced.
        checkpoint, ema: see ``trained``.
        on: ``held_out``, a name in ``data.eval_sets``, or ``test``.
        limit: samples to predict, from the first on; None takes all.

    Raises:
        UserError: something that the user can mend.
    """
    with trained(recipe, checkpoint, ema, on) as model:
        placed, records = model.placed, Records(model.mesh)
        writes = writing_all(recipe.generation, placed.task)
        samples = recipe.trainer.eval_samples if recipe.data.streaming and limit is None else limit
        metrics = model.metrics(on, samples, writes, records)
        on_main(model.mesh, lambda: write_predictions(out, placed.task, placed.corpus, records, on))
        records.close()
    return model.origin | metrics
