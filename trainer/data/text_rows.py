"""Convert rows of labelled texts, or pairs of texts, to samples for classification or regression. Functions here choose
a tokenizer, count tokens and append an end token; other kinds of samples use them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from typing import Any, ClassVar

import numpy as np

from ...errors import Problem, UserError
from ...models.facts import Facts
from .base_collator import Sample
from .content_stamp import hash_json
from .labels import Labels
from .samples import Given, Samples, texts_of
from .text_values import vocabulary_of
from .tokenizer import load_or_train


class LabelledTexts(Samples):
    """A text, perhaps a second one, and its label: a class, several classes, or a number (``labels.py``)."""

    columns: ClassVar[dict[str, bool]] = {"text": True, "text_pair": False, "label": True}
    made_of: ClassVar[dict[str, str]] = {"input_ids": "text", "labels": "label"}

    def __init__(self, given: Given) -> None:
        self.processor = text_processor(given, "text", *(["text_pair"] if "text_pair" in given.rows.features else []))
        self.length, self.labels = given.config.block_size, Labels(given)
        self.facts = Facts(vocabulary_of(self.processor), self.labels.names, self.labels.problem)

    def sample(self, row: dict[str, Any]) -> Sample:
        if not row["text"]:
            raise ValueError("it has no text")
        pair = row.get("text_pair")
        encoded = self.processor(row["text"], pair, truncation=True, max_length=self.length, verbose=False)
        arrays = {name: np.asarray(value, np.int64) for name, value in encoded.items()}
        return {**arrays, "label": self.labels.of(row)}

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {"tokens": token_counts(self.processor, rows["text"], rows.get("text_pair"))}

    def longest(self) -> dict[str, float | None]:
        return {"tokens": self.length}


def token_counts(tokenizer: Any, texts: Sequence[Any], pairs: Sequence[Any] | None = None) -> list[float]:
    """Tokens of each text, special ones included, before any are cut."""
    plain = [str(text or "") for text in texts]
    beside = [str(text or "") for text in pairs] if pairs is not None else None
    encoded = tokenizer(plain, beside, truncation=False, verbose=False)
    return [len(ids) for ids in encoded["input_ids"]]


def ended(encode: Any, text: str, tokenizer: Any, length: int) -> np.ndarray:
    """Tokens of a text that a model learns to generate, at most ``length``, with an end token.

    Args:
        encode: the tokenizer, or a function like it.

    Raises:
        UserError: the tokenizer has no such token, so that no written text would end.
    """
    end = tokenizer.eos_token_id
    if end is None:
        fix = "set data.tokenizer.kind=unigram, bpe or wordpiece, or name a tokenizer with an eos_token"
        raise UserError(Problem("data.tokenizer", "has no token that ends a text, and the model is to write some", fix))
    tokens = encode(text, truncation=True, max_length=length, verbose=False)["input_ids"]
    tokens = tokens if tokens and tokens[-1] == end else [*tokens[: length - 1], end]
    return np.asarray(tokens, np.int64)


def text_processor(
    given: Given, *columns: str, beside: Sequence[str] = (), said: Callable[[], Iterable[str]] | None = None
) -> Any:
    """The tokenizer of ``data.tokenizer``, of the weights, or one trained on ``columns`` of the rows.

    Args:
        beside: further texts to train it on, such as a prefix that every sample gets.
        said: gives the texts of the rows, in place of ``columns``.
    """
    config = given.config.tokenizer
    if config.path is None and given.weights is not None:
        from .tokenizer import load_tokenizer

        return load_tokenizer(str(given.weights), "model.weights")
    name = hash_json([given.print, list(beside)]) if beside else given.print
    texts = said or (lambda: texts_of(given, *columns))
    return load_or_train(config, lambda: chain(beside, texts()), name, str(given.cache))
