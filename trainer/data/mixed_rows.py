"""Open a corpus that mixes rows of several data sources, which must have the same columns with the same types. Labels
that the sources number differently are replaced by their names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from ..component import Component
from ..settings import TrainerConfig
from .cache import cache_root
from .content_stamp import hash_json
from .data_config import DataConfig
from .mixed_source import of_source, source_key
from .mixture import IndexedMixture
from .open_samples import made_samples
from .prepare_rows import PreparedRows, prepared_rows
from .rows_corpus import RowsCorpus
from .samples import Given, Samples

if TYPE_CHECKING:
    from datasets import Dataset

    from ..tasks.task import Task


def open_mixed_rows(
    config: DataConfig,
    seed: int,
    settings: TrainerConfig,
    collator: Component | None,
    task: Task,
    kind: type[Samples],
    weights: Path | None,
    model: Any,
) -> IndexedMixture:
    """The corpus of a task that learns from rows of several sources.

    Args:
        kind: the class of the task's samples.
        weights: folder of the model's weights.

    Raises:
        UserError: a source is not usable, or they do not fit together.
    """
    configs, rows = config.parts(), {}
    for name, part in configs.items():
        own = {**config.columns, **(config.sources or {})[name].columns}
        with of_source(name):
            rows[name] = prepared_rows(part, kind.columns, source_key(name), own)
    rows = with_named_labels(rows)
    print_ = hash_json([[name, each.print] for name, each in rows.items()])
    given = Given(config, joined_rows(rows), cache_root(config.cache_dir), print_, weights, model)
    samples = made_samples(kind, given, config.samples)
    parts = {
        name: RowsCorpus(part, seed, settings, collator, task, samples, rows[name], model, source_key(name))
        for name, part in configs.items()
    }
    return IndexedMixture(config, seed, settings, collator, task, model, parts)


def with_named_labels(rows: Mapping[str, PreparedRows]) -> dict[str, PreparedRows]:
    """``rows`` with label names in place of numbers, where sources number labels differently or only some name them."""
    found = dict(rows)
    for column in {column for each in rows.values() for column in each.train.column_names}:
        features = [each.train.features.get(column) for each in rows.values()]
        if any(feature != features[0] for feature in features):
            for name, each in found.items():
                parts = {part: _named(getattr(each, part), column) for part in ("train", "held_out")}
                found[name] = replace(each, **parts)
    return found


def _named(data: Dataset, column: str) -> Dataset:
    """``data`` with the names of the labels in ``column`` in place of their numbers, if it holds any."""
    from datasets import ClassLabel, Value

    feature = data.features.get(column)
    if not isinstance(feature, ClassLabel):
        return data
    names = dict(enumerate(feature.names))
    values = [names.get(number) for number in data[column]]
    return data.remove_columns(column).add_column(column, values, feature=Value("string"))  # type: ignore[call-arg]


def joined_rows(rows: Mapping[str, PreparedRows]) -> Dataset:
    """The rows to train on of all sources, one after the other.

    Raises:
        UserError: sources have other columns, or columns of other types, than the first.
    """
    from datasets import concatenate_datasets

    (first, wanted), *others = ((name, each.train) for name, each in rows.items())
    problems = [problem for name, data in others for problem in _differences(first, wanted, name, data)]
    if problems:
        raise UserError(*problems)
    alike = [data if data.features == wanted.features else data.cast(wanted.features) for _, data in others]
    return concatenate_datasets([wanted, *alike])


def _differences(first: str, wanted: Dataset, name: str, data: Dataset) -> list[Problem]:
    key = source_key(name)
    if set(wanted.column_names) != set(data.column_names):
        why = f"gives the columns {_listed(data)}, and the source {first} gives {_listed(wanted)}"
        fix = f"give all sources the same columns; names that differ stand in data.sources.{name}.columns"
        return [Problem(key, why, fix)]
    problems = []
    for column in sorted(wanted.column_names):
        here, there = (_kind(one.features[column]) for one in (data, wanted))
        if here != there:
            why = f"holds {column} as {here}, and the source {first} holds it as {there}"
            problems.append(Problem(key, why, "give the column the same type in all sources"))
    return problems


def _listed(data: Dataset) -> str:
    return ", ".join(sorted(data.column_names))


def _kind(feature: Any) -> str:
    """A type of ``datasets`` in words; ``string`` and ``large_string`` count as one type."""
    from datasets import Value

    if isinstance(feature, Value):
        return feature.dtype.replace("large_string", "string")
    return str(feature)
