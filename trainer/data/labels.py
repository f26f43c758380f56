"""Determine whether a label column holds one class, several classes or a number per row, and encode the labels.

The rule is the same for texts, images and audio. Numbers with a fraction are regression targets, lists are several
classes per row, and everything else is one class per row.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .samples import Given, label_names, label_number

COLUMN = "label"
"""Name that tasks use for the column of the labels."""


class Labels:
    """Kind and names of the labels in the rows, and the label of one row."""

    def __init__(self, given: Given) -> None:
        from datasets import ClassLabel

        feature = given.rows.features[COLUMN]
        inner = getattr(feature, "feature", feature)
        self._stored_as_numbers = isinstance(inner, ClassLabel)
        if str(getattr(feature, "dtype", "")).startswith(("float", "double")):
            self.names, self.problem = ("value",), "regression"
        elif hasattr(feature, "feature"):
            self.names, self.problem = _names_in_lists(given), "multi_label_classification"
        else:
            self.names, self.problem = label_names(given), "single_label_classification"

    def of(self, row: dict[str, Any]) -> Any:
        """The label of ``row``: a number, or an array with a one for each of its classes.

        Raises:
            ValueError: it has none, or one that the rows to train on do not have.
        """
        value = row[COLUMN]
        if self.problem == "single_label_classification":
            return label_number(value, self.names, self._stored_as_numbers)
        if self.problem == "regression":
            if value is None:
                raise ValueError("it has no label")
            if not np.isfinite(value):
                raise ValueError(f"its label is {value}, no finite number")
            return np.float32(value)
        marked = np.zeros(len(self.names), np.float32)
        for one in value or []:
            marked[label_number(one, self.names, self._stored_as_numbers)] = 1.0
        return marked

    def shown(self, row: dict[str, Any]) -> str:
        """The label as people read it: its name, where the data set stores its place."""
        value = row[COLUMN]
        if self._stored_as_numbers and isinstance(value, int) and 0 <= value < len(self.names):
            return self.names[value]
        return str(value)


def _names_in_lists(given: Given) -> tuple[str, ...]:
    from datasets import ClassLabel

    inner = given.rows.features[COLUMN].feature  # type: ignore[union-attr]
    if given.config.labels or isinstance(inner, ClassLabel):
        return tuple(given.config.labels or inner.names)
    return tuple(sorted({str(one) for value in _values(given) for one in value or []}))


def _values(given: Given) -> Iterator[Any]:
    for batch in given.rows.select_columns([COLUMN]).iter(batch_size=1024):
        yield from batch[COLUMN]  # type: ignore[index]
