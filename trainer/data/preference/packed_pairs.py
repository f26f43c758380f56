"""A data set of packed preference pairs. A sample holds several pairs of texts: all first texts are packed into one
token sequence, and all second texts into another, so the two texts of a pair are always in the same sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..base_collator import Sample
from ..document_bins import DocumentBins, Overflow, pieces
from ..packed_rows import Binned


class PackedPairs(Binned):
    """Whole samples, several to a row. Their lengths are those of their longer texts, so both rows have room."""

    what = "samples of two texts"

    def __init__(self, rows: Any, block_size: int, seed: int = 0, shuffle: bool = True) -> None:
        """
        Args:
            rows: samples by index, with their ``lengths``, at most ``block_size``.
        """
        self.rows, self.block_size = rows, block_size
        self.overflow: Overflow = "cut"  # texts are cut already
        self.pieces = pieces(np.asarray(rows.lengths if len(rows) else [], np.int64), block_size, self.overflow)
        self.bins = DocumentBins(self.pieces.lengths, block_size, seed, shuffle)

    def __getitem__(self, index: int) -> Sample:
        if index < 0 or not len(self):
            raise IndexError(f"row {index} of {len(self)}")
        chosen, numbers = self.bins(index)
        return {"pairs": self.rows.__getitems__(chosen.tolist()), "numbers": numbers, "index": index}


def samples_in(sample: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The samples of a row, each with the number from which its random noise (dropout) is drawn."""
    if "pairs" in sample:
        return [(int(number), one) for number, one in zip(sample["numbers"], sample["pairs"], strict=True)]
    return [(int(sample.get("position", sample["index"])), sample)]
