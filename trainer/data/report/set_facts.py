"""``SetFacts`` holds the statistics of a data set for the report of ``trireme data``: sizes, lengths, labels, left-out
rows. Functions here compute the distributions of lengths and the counts of labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ....models.facts import Facts
from ...component_errors import component_errors

if TYPE_CHECKING:
    from datasets import Dataset

LABEL = "label"
"""Name that tasks use for the column of the labels."""
AT_ONCE = 256
"""Rows that are measured in one call."""


@dataclass(frozen=True)
class Spread:
    """Distribution of a length or a number over a set."""

    name: str
    counted: int
    of: int
    """Number of values, of which ``counted`` were measured."""
    least: float
    median: float
    high: float
    """95th percentile."""
    most: float
    limit: float | None = None
    """Length at which samples are cut; None if nothing is cut."""
    cut: int = 0
    """Number of measured values beyond the limit."""
    unreadable: int = 0
    """Number of rows without such a length, such as files that hold no image: they are refused when they are read."""


@dataclass(frozen=True)
class LabelCount:
    """How often a label occurs."""

    name: str
    count: int
    known: bool = True
    """False for a label that is not one of the task, and for rows without one: they are refused when they are read."""


@dataclass(frozen=True)
class Part:
    """One source of several that make up a set."""

    name: str
    samples: int | None
    share: float
    """Share of the samples that are drawn from it."""


@dataclass
class SetFacts:
    """Facts about a data set that are known before any training."""

    name: str
    sizes: dict[str, int | None] = field(default_factory=dict)
    """Unit, such as ``documents`` -> how many of them the set has; None if unknown, as for a stream."""
    source: str = ""
    """Class and arguments of the source."""
    spreads: list[Spread] = field(default_factory=list)
    labels: list[LabelCount] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)
    """The sources of a mixture; empty if there is one source."""
    notes: list[str] = field(default_factory=list)
    """Lines on what is left out or cut."""


def spread(name: str, values: Any, of: int | None = None, limit: float | None = None) -> list[Spread]:
    """The distribution of ``values``, as a list that is empty if there are none."""
    found = np.asarray(values, np.float64).reshape(-1)
    found = found[np.isfinite(found)]
    if not len(found):
        return []
    median, high = (float(value) for value in np.quantile(found, [0.5, 0.95], method="inverted_cdf"))
    cut = int((found > limit).sum()) if limit is not None else 0
    return [
        Spread(name, len(found), of or len(found), float(found.min()), median, high, float(found.max()), limit, cut)
    ]


def measured_rows(rows: Dataset, samples: Any) -> list[Spread]:
    """Distributions of the lengths that the ``Samples`` measure; in a large set, of evenly spaced rows only."""
    count = min(len(rows), samples.most_measured)
    places = np.linspace(0, len(rows) - 1, count).round().astype(np.int64) if count < len(rows) else np.arange(count)
    found: dict[str, list[float]] = {}
    for first in range(0, count, AT_ONCE):
        batch: Any = rows[places[first : first + AT_ONCE]]  # type: ignore[index]
        with component_errors("task", samples, "lengths"):
            for name, values in samples.lengths(batch).items():
                found.setdefault(name, []).extend(map(float, values))
    with component_errors("task", samples, "longest"):
        limits = dict(samples.longest())
    spreads = [one for name, values in found.items() for one in spread(name, values, len(rows), limits.get(name))]
    return [replace(one, unreadable=count - one.counted) for one in spreads]


def label_facts(rows: Dataset, facts: Facts, column: str = LABEL) -> tuple[list[LabelCount], list[Spread]]:
    """How often each label occurs in the column of the labels, or the distribution of numbers to be predicted."""
    from datasets import ClassLabel

    if not facts.labels or column not in rows.column_names:
        return [], []
    feature = rows.features[column]
    by_number = isinstance(getattr(feature, "feature", feature), ClassLabel)
    values = _values(rows, column)
    if facts.problem == "regression":
        return [], spread("value of the label", values.drop_null().to_numpy())
    return label_counts(_counted(values), facts.labels, by_number), []


def label_counts(counts: Mapping[Any, int], names: Sequence[str], by_number: bool) -> list[LabelCount]:
    """Counts by name, those of the task first.

    Args:
        by_number: the values are places in ``names``.
    """
    known, others = dict.fromkeys(names, 0), dict[str, int]()
    for value, count in counts.items():
        name = "none" if value is None else str(value)
        if by_number and value is not None and 0 <= value < len(names):
            name = names[int(value)]
        into = known if name in known and value is not None else others
        into[name] = into.get(name, 0) + count
    return [LabelCount(name, count) for name, count in known.items()] + [
        LabelCount(name, count, known=False) for name, count in sorted(others.items())
    ]


def _values(rows: Dataset, column: str) -> Any:
    """The column of the labels, as pyarrow holds it."""
    table: Any = rows.select_columns([column]).with_format("arrow")[:]
    return table.column(column)


def _counted(values: Any) -> dict[Any, int]:
    import pyarrow as pa
    import pyarrow.compute

    compute: Any = pyarrow.compute  # its functions are made when it is imported, so no type checker knows them
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        values = compute.list_flatten(values)
    return {one["values"]: one["counts"] for one in compute.value_counts(values).to_pylist()}


def component_text(component: Mapping[str, Any], most: int = 200) -> str:
    """A component as one line: the last part of its class, and its arguments."""
    name = str(component.get("_target_", "")).rpartition(".")[2]
    arguments = [f"{key}={value}" for key, value in component.items() if key != "_target_" and value is not None]
    text = " ".join([name, *arguments])
    return text if len(text) <= most else text[: most - 3] + "..."


def lengths_between(parts: Iterable[np.ndarray]) -> np.ndarray:
    """Lengths of documents from the positions of their ends, part by part."""
    lengths, end = [], 0
    for ends in parts:
        lengths.append(np.diff(ends, prepend=end))
        end = int(ends[-1]) if len(ends) else end
    return np.concatenate(lengths) if lengths else np.empty(0, np.int64)
