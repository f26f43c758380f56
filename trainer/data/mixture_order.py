"""Decide which of several weighted data sources each position of the training stream is taken from.

A position takes the source that is farthest behind its share ("smooth weighted round-robin", as in nginx). After n
samples, the count of each source differs from n x share by at most about one. In any window of n samples it differs by
at most two (by one for two sources, and usually for more).

The pattern repeats after as many positions as the sum of the weights, reduced to the smallest whole numbers. It is
computed once, and the source of any position is looked up in it, so a resume needs no saved state. It depends on the
sources' names and weights and not on their order in the recipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from .sample_order import EpochOrder

LONGEST = 100_000
"""Longest pattern. Weights that need a longer one are rounded to so many parts of the whole; each source has at least
one part."""


class Interleave:
    """Maps positions of the stream to sources."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """
        Args:
            weights: positive weights by name of the source.
        """
        self.names = sorted(weights)
        """Sources; their numbers are places in this list."""
        self.parts = np.array(whole_parts([weights[name] for name in self.names]), np.int64)
        """Samples of each source in one repetition of the pattern."""
        self.length = int(self.parts.sum())
        self._source, self._before = _pattern(self.parts)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each source in the samples."""
        return {name: int(part) / self.length for name, part in zip(self.names, self.parts, strict=True)}

    def sources(self, positions: np.ndarray) -> np.ndarray:
        """Number of the source at each position."""
        return self._source[positions % self.length]

    def places(self, positions: np.ndarray) -> np.ndarray:
        """Number of earlier samples of the same source at each position."""
        rounds, within = np.divmod(positions, self.length)
        return rounds * self.parts[self._source[within]] + self._before[within]

    def counts(self, samples: int) -> np.ndarray:
        """Samples of each source among the first ``samples`` ones."""
        rounds, rest = divmod(samples, self.length)
        return rounds * self.parts + np.bincount(self._source[:rest], minlength=len(self.names))

    def wanted(self, samples: int) -> list[int]:
        """Samples of each source in an evaluation of ``samples``: at least one of each."""
        return [max(1, count) for count in self.counts(samples).tolist()]


class MixedOrder:
    """Maps positions of the stream to indices in the joined data sets of all sources. Each source has passes and an
    order of its own."""

    def __init__(
        self, interleave: Interleave, sizes: Mapping[str, int], seed: int, shuffle: bool, counts_on: bool = False
    ) -> None:
        """
        Args:
            sizes: samples of one pass over each source.
            counts_on: as for ``EpochOrder``; here the indices of pass p begin at p x the samples of all sources.
        """
        self.interleave = interleave
        self.orders = [EpochOrder(sizes[name], seed_of(seed, name), shuffle, counts_on) for name in interleave.names]
        self.starts = np.cumsum([0, *(order.size for order in self.orders)])

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        positions = np.asarray(positions, np.int64)
        numbers, places = self.interleave.sources(positions), self.interleave.places(positions)
        indices = np.empty_like(positions)
        for number, order in enumerate(self.orders):
            chosen = numbers == number
            passes, within = np.divmod(order(places[chosen]), order.size)
            indices[chosen] = passes * self.starts[-1] + self.starts[number] + within
        return indices


def seed_of(seed: int, name: str) -> int:
    """Seed of the order of one source, so that sources of one size are not shuffled alike."""
    digest = hashlib.blake2b(f"{seed}/source/{name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def whole_parts(weights: list[float]) -> list[int]:
    """Weights as the smallest whole numbers of the same proportions, as far as ``LONGEST`` allows."""
    exact = [Fraction(str(weight)) for weight in weights]  # by its digits: 0.1 is a tenth
    scale = lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * scale) for weight in exact]
    divisor = gcd(*whole)
    whole = [part // divisor for part in whole]
    if sum(whole) <= LONGEST:
        return whole
    rounded = [max(1, round(Fraction(part * LONGEST, sum(whole)))) for part in whole]
    divisor = gcd(*rounded)
    return [part // divisor for part in rounded]


def _pattern(parts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The source at each position of the pattern, and the number of its earlier samples there."""
    length = int(parts.sum())
    source, before = np.empty(length, np.int32), np.empty(length, np.int64)
    behind, taken = np.zeros(len(parts), np.int64), np.zeros(len(parts), np.int64)
    for position in range(length):
        behind += parts
        number = int(behind.argmax())
        behind[number] -= length
        source[position], before[position] = number, taken[number]
        taken[number] += 1
    return source, before
