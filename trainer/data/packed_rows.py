"""Data sets of packed sequences of tokens, in which documents do not attend to each other.

Beside ``input_ids`` and, in some tasks, ``labels``, each sample has ``position_ids`` that restart at every document,
and ``documents``, the number of each token's document. The collator turns these into the inputs that the model needs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from .base_collator import Sample
from .document_bins import DocumentBins, Overflow, Pieces, pieces
from .report.set_facts import SetFacts, lengths_between
from .token_files import Column, PackedBlocks


class Binned(Dataset[Sample]):
    """Rows that each hold several pieces (``document_bins.py``). Indices count on over the passes."""

    block_size: int
    overflow: Overflow
    pieces: Pieces
    bins: DocumentBins
    what = "documents"
    """Name of the pieces."""

    def __len__(self) -> int:
        """Rows of one pass."""
        return len(self.bins)

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        return [self[index] for index in indices]

    def lines(self, name: str = "") -> list[str]:
        """Lines on how full the rows are, and on documents that are longer than a row.

        Args:
            name: of the set.
        """
        rows, count, size = len(self), self.bins.filled, self.block_size
        what = self.what if self.pieces.documents is None else "documents and parts of documents"
        each = f"{count / max(rows, 1):.3g} to a row"
        full = f"{count} {what} in {rows} rows of {size} tokens: {each}, rows are {self.bins.fill:.2%} full"
        return [full, *filter(None, [self.pieces.line(name, self.overflow)])]

    def describe(self, facts: SetFacts) -> None:
        """Add rows to what is known of a set."""
        facts.sizes[f"packed rows of {self.block_size} tokens"] = len(self)
        facts.notes += self.lines()


class BinnedDocuments(Binned):
    """Whole documents, several to a row."""

    def __init__(
        self,
        tokens: Column,
        ends: Column,
        block_size: int,
        overflow: Overflow = "cut",
        seed: int = 0,
        shuffle: bool = True,
        labels: Column | None = None,
    ) -> None:
        """
        Args:
            ends: ``ends[i]`` is the position in ``tokens`` after document i.
            labels: a label beside every token; None takes the tokens.
        """
        self.tokens, self.ends, self.labels, self.block_size = tokens, ends, labels, block_size
        self.overflow: Overflow = overflow
        self.pieces: Pieces = pieces(lengths_between(ends.parts), block_size, overflow)
        self.bins = DocumentBins(self.pieces.lengths, block_size, seed, shuffle)

    def __getitem__(self, index: int) -> Sample:
        if index < 0 or not len(self):
            raise IndexError(f"row {index} of {len(self)}")
        chosen, numbers = self.bins(index)
        places = [self._place(piece) for piece in chosen.tolist()]
        sample = packed([self.tokens.cut(*place) for place in places], numbers)
        if self.labels is not None:
            sample["labels"] = np.concatenate([self.labels.cut(*place) for place in places])
        return {**sample, "index": index}

    def _place(self, piece: int) -> tuple[int, int]:
        """Start and end of a piece in the column of tokens."""
        document, within = self.pieces.place(piece)
        start = (int(self.ends.cut(document - 1, document)[0]) if document else 0) + within
        return start, start + int(self.pieces.lengths[piece])


class SeparateBlocks(PackedBlocks):
    """Blocks of consecutive tokens, in which a document begins anew: it does not see those before it. Indices count on
    over the passes."""

    def __init__(self, tokens: Column, ends: Column, block_size: int) -> None:
        super().__init__(tokens, block_size)
        self.ends = ends

    def __getitem__(self, index: int) -> Sample:
        if index < 0 or not len(self):
            raise IndexError(f"block {index} of {len(self)}")
        turn, place = divmod(index, len(self))
        first = place * self.block_size
        before = self.ends.not_above(first)
        starts = self.ends.cut(before, self.ends.not_above(first + self.block_size - 1)) - first
        parts = np.split(self.cut(place), starts)
        # A block begins a part, too, so blocks before this one count beside the documents.
        number = before + place + turn * (len(self.ends) + len(self))
        return {**packed(parts, number + np.arange(len(parts))), "index": index}


class MemoryRows(Dataset[Sample]):
    """Rows held in memory, for the held-out part of a stream."""

    def __init__(self, rows: list[Sample]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return {**self.rows[index], "index": index}


def packed(documents: Sequence[np.ndarray], numbers: np.ndarray) -> Sample:
    """A row of documents: their tokens one after the other, positions that restart, and the number of each token's
    document."""
    lengths = [len(tokens) for tokens in documents]
    return {
        "input_ids": np.concatenate(documents),
        "position_ids": np.concatenate([np.arange(length) for length in lengths]),
        "documents": np.repeat(np.asarray(numbers, np.int64), lengths),
    }
