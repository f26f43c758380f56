"""``Facts``: the properties of a data set that are needed to build a model: vocabulary, labels, type of labels."""

from __future__ import annotations

from dataclasses import dataclass

from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Facts:
    """Vocabulary and labels of the data; None and empty where there are none."""

    vocabulary: Vocabulary | None = None
    labels: tuple[str, ...] = ()
    """Names of the labels; the number of a label is its index."""
    problem: str | None = None
    """transformers' ``problem_type`` of a classification."""
