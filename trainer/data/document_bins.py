"""Choose which documents are packed together into one sequence of tokens; only their lengths and the seed decide this.
Documents that are longer than a sequence are cut, split or dropped.

A packed sequence is called a bin. Which document lengths each bin combines is decided once, by ``first_fit.py``. In
each epoch, a keyed permutation of the documents of each length decides which of them take the places of this length, so
every epoch combines other documents. No list of bins is stored. Each bin is computed on its own, so it is the same
after a resume, under another parallelism plan and with more workers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from .first_fit import FirstFit
from .sample_order import permute

Overflow = Literal["cut", "split", "drop"]
FIXED_ORDER = 0
"""Key of the fixed permutation of the bins. With it, the first rows of a set hold documents of all lengths."""


@dataclass
class Pieces:
    """The contents of bins: documents, or parts of documents that are longer than a bin."""

    lengths: np.ndarray
    """Tokens of each piece; 0 for a document that is left out."""
    documents: np.ndarray | None
    """Document of each piece; None where piece and document are the same."""
    capacity: int
    over: int
    """Number of documents longer than a bin."""
    lost: int
    """Tokens of these documents that are in no piece."""
    found: tuple[int, int]
    """Number of all documents, and of their tokens."""

    def place(self, piece: int) -> tuple[int, int]:
        """Document of a piece, and where in it the piece begins."""
        if self.documents is None:
            return piece, 0
        document = int(self.documents[piece])
        return document, (piece - int(np.searchsorted(self.documents, document))) * self.capacity

    def line(self, name: str, overflow: Overflow) -> str:
        """One line on what became of documents that are longer than a row; empty if there are none."""
        return overflow_line(name, overflow, self.capacity, (self.over, self.lost), self.found)


def overflow_line(name: str, overflow: Overflow, capacity: int, lost: tuple[int, int], of: tuple[int, int]) -> str:
    """One line on what became of documents that are longer than a row; empty if there are none.

    Args:
        lost: documents longer than a row, and their tokens that are left out.
        of: all documents, and their tokens.
    """
    if not lost[0]:
        return ""
    begin = f"data.overflow={overflow}: {lost[0]} of {of[0]}{name and f' {name}'} documents are longer than a row of "
    begin += f"data.block_size={capacity} tokens"
    if overflow == "split":
        return f"{begin} and are divided; their parts do not see each other"
    what = "cut" if overflow == "cut" else "left out"
    share = f"{lost[1]} of {of[1]} tokens ({lost[1] / of[1]:.1%}) are left out"
    return f"{begin} and are {what}: {share}; a larger block_size or overflow=split keeps them"


def pieces(lengths: np.ndarray, capacity: int, overflow: Overflow) -> Pieces:
    """The pieces of documents of these lengths, for bins of ``capacity`` tokens."""
    long, found = lengths > capacity, (len(lengths), int(lengths.sum()))
    over = int(long.sum())
    if overflow == "split" and over:
        parts = np.maximum(-(-lengths // capacity), 1)
        documents = np.repeat(np.arange(len(lengths)), parts)
        within = np.arange(len(documents)) - np.repeat(np.cumsum(parts) - parts, parts)
        sizes = np.minimum(lengths[documents] - within * capacity, capacity)
        return Pieces(sizes, documents, capacity, over, 0, found)
    kept = np.where(long, 0, lengths) if overflow == "drop" else np.minimum(lengths, capacity)
    return Pieces(kept, None, capacity, over, found[1] - int(kept.sum()), found)


class DocumentBins:
    """The pieces of every bin of every pass."""

    def __init__(self, lengths: np.ndarray, capacity: int, seed: int, shuffle: bool = True) -> None:
        """
        Args:
            lengths: tokens of each piece, at most ``capacity``; pieces of 0 tokens are in no bin.
            shuffle: False fills the places in the order of the pieces, the same in every pass.
        """
        self.seed, self.shuffle, self.pieces = seed, shuffle, len(lengths)
        self._counts = np.bincount(lengths, minlength=capacity + 1)
        self._starts = np.cumsum(self._counts) - self._counts
        narrow = lengths.astype(np.uint16 if capacity < 2**16 else np.int32)  # numpy sorts the former in linear time
        index = np.int32 if len(lengths) < 2**31 else np.int64
        self._by_length = np.argsort(narrow, kind="stable").astype(index)
        self.fit = FirstFit(self._counts, capacity)
        self.tokens = int((self._counts * np.arange(len(self._counts))).sum())
        """Tokens in all bins."""
        self.filled = int(self._counts[1:].sum())
        """Pieces in all bins."""

    def __len__(self) -> int:
        return len(self.fit)

    @property
    def attended(self) -> float:
        """Length of a token's piece, as a mean over tokens."""
        return float((self._counts * np.arange(len(self._counts)) ** 2).sum() / max(self.tokens, 1))

    @property
    def fill(self) -> float:
        """Share of the places for tokens that hold one."""
        return self.tokens / max(len(self) * self.fit.capacity, 1)

    def __call__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of a bin, and their numbers. Numbers continue from pass to pass: piece i of pass p is p x pieces + i.

        Args:
            index: number of the bin, which also continues from pass to pass: bin b of pass p is p x bins + b.
        """
        turn, place = divmod(index, len(self))
        number = int(permute(np.array([place]), len(self), FIXED_ORDER)[0])
        found = [self._of_length(length, first, count, turn) for length, first, count in self.fit.content(number)]
        chosen = np.concatenate(found).astype(np.int64)
        return chosen, chosen + turn * self.pieces

    def _of_length(self, length: int, first: int, count: int, turn: int) -> np.ndarray:
        places = np.arange(first, first + count)
        if self.shuffle:
            places = permute(places, int(self._counts[length]), self.seed, turn, length)
        return self._by_length[self._starts[length] + places]
