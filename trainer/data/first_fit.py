"""Pack documents of tokens into bins of equal capacity by first-fit-decreasing, from their lengths alone.

Documents are placed in order of decreasing length, each into the first bin with enough room. Documents of one length
are interchangeable, so they are placed together: the first bin takes as many as fit, then the next bin. Neighbouring
bins with the same content are stored as one run. The cost therefore grows with the number of different lengths and
hardly with the number of documents: millions are packed in milliseconds. ``document_bins.py`` later decides which
document goes to which of these places.

First-fit-decreasing needs at most about 11/9 of the smallest possible number of bins (Johnson, "Near-optimal bin
packing algorithms", 1973).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


class FirstFit:
    """Bins, each with the numbers of documents of every length in it."""

    def __init__(self, counts: np.ndarray, capacity: int) -> None:
        """
        Args:
            counts: [capacity + 1], number of documents of each length.
        """
        self.capacity = capacity
        self.bins = 0
        """Number of bins."""
        lengths = np.flatnonzero(counts[1:])[::-1] + 1
        self._shortest = int(lengths[-1]) if len(lengths) else 1
        # Runs that have room, in the order of their bins: first bin, number of bins, room in each, last placement.
        self._first, self._size, self._room, self._last = (np.empty(0, np.int64) for _ in range(4))
        self._closed: list[tuple[np.ndarray, np.ndarray]] = []
        self._placements: list[np.ndarray] = []
        self._placed = 0
        for length in lengths.tolist():
            self._place(length, int(counts[length]))
        self._finish()

    def __len__(self) -> int:
        return self.bins

    def content(self, number: int) -> Iterator[tuple[int, int, int]]:
        """(length, first place, documents) of bin ``number``, longest documents first. Places count the documents of
        one length, from 0, in the order of the bins."""
        placement = int(self._last[np.searchsorted(self._first, number, side="right") - 1])
        found = []
        while placement >= 0:
            before, length, each, first_bin, first_place = self._table[placement].tolist()
            found.append((length, first_place + (number - first_bin) * each, each))
            placement = before
        return reversed(found)

    def _place(self, length: int, count: int) -> None:
        """Place ``count`` documents of one length."""
        fitting = np.flatnonzero(self._room >= length)
        each = self._room[fitting] // length
        holds = each * self._size[fitting]
        places = np.cumsum(holds) - holds  # first place of each run
        used = places < count
        fitting, each, holds, places = fitting[used], each[used], holds[used], places[used]
        if len(fitting) and places[-1] + holds[-1] > count:  # the last run is not needed whole
            fitting, each, places = self._split(fitting, each, places, count)
            holds = each * self._size[fitting]
        self._add(fitting, length, each, places)
        if (left := count - int(holds.sum())) > 0:
            self._open(length, left, count - left)
        self._close()

    def _split(
        self, fitting: np.ndarray, each: np.ndarray, places: np.ndarray, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Split the last of the ``fitting`` runs: bins that are filled, one that takes the rest, bins that get none."""
        run, most, place = int(fitting[-1]), int(each[-1]), int(places[-1])
        full, rest = divmod(count - place, most)
        sizes = [full, 1 if rest else 0, int(self._size[run]) - full - (1 if rest else 0)]
        kept = [size for size in sizes if size]
        first = int(self._first[run]) + np.cumsum([0, *kept[:-1]])
        for name, values in (("_first", first), ("_size", np.array(kept))):
            old = getattr(self, name)
            setattr(self, name, np.concatenate([old[:run], values, old[run + 1 :]]))
        for name in ("_room", "_last"):
            setattr(self, name, np.repeat(getattr(self, name), _times(len(getattr(self, name)), run, len(kept))))
        taking = [(most, place)] * bool(full) + [(rest, place + full * most)] * bool(rest)
        runs = run + np.arange(len(taking))
        amounts, starts = (np.array([pair[part] for pair in taking], np.int64) for part in (0, 1))
        return np.append(fitting[:-1], runs), np.append(each[:-1], amounts), np.append(places[:-1], starts)

    def _add(self, runs: np.ndarray, length: int, each: np.ndarray, places: np.ndarray) -> None:
        """Note that every bin of ``runs`` takes ``each`` documents more."""
        rows = np.stack([self._last[runs], np.full(len(runs), length), each, self._first[runs], places], axis=1)
        self._placements.append(rows)
        self._last[runs] = self._placed + np.arange(len(runs))
        self._placed += len(runs)
        self._room[runs] -= each * length

    def _open(self, length: int, count: int, place: int) -> None:
        """Open bins for ``count`` documents of one length, the first of which has the given place."""
        most = self.capacity // length
        full, rest = divmod(count, most)
        for bins, each in ((full, most), (1, rest)):
            if not bins or not each:
                continue
            self._first, self._size = np.append(self._first, self.bins), np.append(self._size, bins)
            self._room, self._last = np.append(self._room, self.capacity), np.append(self._last, -1)
            self._add(np.array([len(self._first) - 1]), length, np.array([each]), np.array([place]))
            self.bins, place = self.bins + bins, place + bins * each

    def _close(self) -> None:
        """Set runs aside that are too full for any document."""
        if (full := self._room < self._shortest).any():
            self._closed.append((self._first[full], self._last[full]))
            for name in ("_first", "_size", "_room", "_last"):
                setattr(self, name, getattr(self, name)[~full])

    def _finish(self) -> None:
        first = np.concatenate([self._first, *(first for first, _ in self._closed)])
        last = np.concatenate([self._last, *(last for _, last in self._closed)])
        order = np.argsort(first)
        self._first, self._last = first[order], last[order]
        self._table = np.concatenate(self._placements) if self._placements else np.empty((0, 5), np.int64)
        del self._closed, self._placements, self._size, self._room


def _times(size: int, place: int, times: int) -> np.ndarray:
    """Repetitions of each of ``size`` items: ``times`` for the item at ``place``, and 1 for the others."""
    counts = np.ones(size, np.int64)
    counts[place] = times
    return counts
