"""The facts about a data set that a model is built with: vocabulary, labels and kind of classification."""

from __future__ import annotations

from dataclasses import dataclass

from .vocabulary import Vocabulary


@dataclass(frozen=True)
class Facts:
    """Vocabulary and labels of the data; None and empty where there are none."""

    vocabulary: Vocabulary | None = None
    labels: tuple[str, ...] = ()
    """Names of the labels; the number of a label is its place."""
    problem: str | None = None
    """transformers' ``problem_type`` of a classification."""
