"""Compute the edit distance of two sequences: the fewest insertions, deletions and replacements (Levenshtein, 1966)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np


def edit_distance(found: Sequence[Hashable], wanted: Sequence[Hashable]) -> int:
    """Fewest edits of single elements that turn ``found`` into ``wanted``."""
    numbers: dict[Hashable, int] = {}
    one, other = (np.array([numbers.setdefault(item, len(numbers)) for item in row]) for row in (found, wanted))
    places = np.arange(len(other) + 1)
    distances = places.copy()
    for number, item in enumerate(one, start=1):
        replaced = distances[:-1] + (other != item)
        row = np.concatenate(([number], np.minimum(replaced, distances[1:] + 1)))
        distances = np.minimum.accumulate(row - places) + places  # insertions, from left to right
    return int(distances[-1])
