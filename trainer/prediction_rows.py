"""Write the rows of a predictions file: each sample in readable form with the model's prediction, in data set order."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from ..errors import Problem, UserError
from .data.corpus import Corpus
from .generation import GenerationConfig
from .prediction_files import FIRST, write_rows
from .records import Records
from .tasks.task import Task


def writing_all(generation: GenerationConfig | None, task: Task) -> GenerationConfig | None:
    """The options to generate a text for every sample of a set; None if neither recipe nor task asks for texts."""
    writes = generation or (GenerationConfig() if task.writes else None)
    return dataclasses.replace(writes, samples=None) if writes else None


def write_predictions(out: str, task: Task, corpus: Corpus, records: Records, on: str) -> None:
    """Write the records of a set, gathered on this rank.

    Args:
        out: see ``prediction_files``.
        on: name of the set.

    Raises:
        UserError: the task keeps no records.
    """
    if not records.count:
        why = f"{type(getattr(task, 'task', task)).__name__} keeps no records of samples"
        raise UserError(Problem("task", why, "write its method records(outputs, targets); docs/predict.md has more"))
    write_rows(out, lambda: _rows(task, corpus, records, on))


def _rows(task: Task, corpus: Corpus, records: Records, on: str) -> Iterator[dict[str, Any]]:
    for record in records:
        yield {
            FIRST: record["index"],
            **corpus.shown(record["index"], on),
            **task.prediction(record, corpus.facts, corpus.tokenizer),
        }
