"""Samples of texts with a label: sentences, and pairs of them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np

from ...models.facts import Facts
from .base_collator import Sample
from .corpus import vocabulary_of
from .samples import Given, Samples, label_names, label_number, texts_of
from .tokenizer import load_or_train


class LabelledTexts(Samples):
    """A text, perhaps a second one, and its label: a class, several classes, or a number to be predicted.

    The kind follows from the column: numbers with a fraction make a regression, lists make several classes per text.
    """

    columns: ClassVar[dict[str, bool]] = {"text": True, "text_pair": False, "label": True}

    def __init__(self, given: Given) -> None:
        from datasets import ClassLabel

        self.processor = text_processor(given, "text", *(["text_pair"] if "text_pair" in given.rows.features else []))
        self.length = given.config.block_size
        feature = given.rows.features["label"]
        kind = str(getattr(feature, "dtype", ""))
        vocabulary = vocabulary_of(self.processor)
        if kind.startswith(("float", "double")):
            self.facts = Facts(vocabulary, ("value",), "regression")
        elif hasattr(feature, "feature"):
            self.facts = Facts(vocabulary, _names_in_lists(given), "multi_label_classification")
        else:
            self.facts = Facts(vocabulary, label_names(given), "single_label_classification")
        inner = getattr(feature, "feature", feature)
        self._stored_as_numbers = isinstance(inner, ClassLabel)

    def sample(self, row: dict[str, Any]) -> Sample:
        if not row["text"]:
            raise ValueError("it has no text")
        pair = row.get("text_pair")
        encoded = self.processor(row["text"], pair, truncation=True, max_length=self.length, verbose=False)
        return {**{name: np.asarray(value, np.int64) for name, value in encoded.items()}, "label": self._label(row)}

    def _label(self, row: dict[str, Any]) -> Any:
        value, names = row["label"], self.facts.labels
        if self.facts.problem == "regression":
            if value is None:
                raise ValueError("it has no label")
            return np.float32(value)
        if self.facts.problem == "single_label_classification":
            return label_number(value, names, self._stored_as_numbers)
        marked = np.zeros(len(names), np.float32)
        for one in value or []:
            marked[label_number(one, names, self._stored_as_numbers)] = 1.0
        return marked


def text_processor(given: Given, *columns: str) -> Any:
    """The tokenizer of ``data.tokenizer``, of the weights, or one trained on ``columns`` of the rows."""
    config = given.config.tokenizer
    if config.path is None and given.weights is not None:
        from .tokenizer import load_tokenizer

        return load_tokenizer(str(given.weights), "model.weights")
    return load_or_train(config, partial(texts_of, given, *columns), given.print, str(given.cache))


def _names_in_lists(given: Given) -> tuple[str, ...]:
    from datasets import ClassLabel

    inner = given.rows.features["label"].feature  # type: ignore[union-attr]
    if given.config.labels or isinstance(inner, ClassLabel):
        return tuple(given.config.labels or inner.names)
    return tuple(sorted({str(one) for value in _values(given) for one in value or []}))


def _values(given: Given) -> Iterator[Any]:
    for batch in given.rows.select_columns(["label"]).iter(batch_size=1024):
        yield from batch["label"]  # type: ignore[index]
