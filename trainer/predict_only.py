"""Predict: what a trained model says of each sample of a set, under any plan, written into one file.

Ranks send small records to rank 0 (``records.py``), which writes them in the order of the set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..errors import Problem, UserError
from .collective import on_main
from .data.data_config import HELD_OUT
from .generation import GenerationConfig
from .place_model import Placed
from .prediction_files import write_rows
from .records import Records
from .trained import trained

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
        writes = recipe.generation or (GenerationConfig() if placed.task.writes else None)
        writes = dataclasses.replace(writes, samples=None) if writes else None
        samples = recipe.trainer.eval_samples if recipe.data.streaming and limit is None else limit
        metrics = model.metrics(on, samples, writes, records)
        on_main(model.mesh, lambda: _write(out, placed, records, on))
        records.close()
    return model.origin | metrics


def _write(out: str, placed: Placed, records: Records, on: str) -> None:
    if not records.count:
        why = f"{type(getattr(placed.task, 'task', placed.task)).__name__} keeps no records of samples"
        raise UserError(Problem("task", why, "write its method records(outputs, targets); docs/predict.md has more"))
    write_rows(out, lambda: _rows(placed, records, on))


def _rows(placed: Placed, records: Records, on: str) -> Iterator[dict[str, Any]]:
    """The sample and its prediction, in the order of the set."""
    corpus = placed.corpus
    for record in records:
        yield {
            "index": record["index"],
            **corpus.shown(record["index"], on),
            **placed.task.prediction(record, corpus.facts, corpus.tokenizer),
        }
