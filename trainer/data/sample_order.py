"""Compute the shuffled order of samples in each epoch by a keyed permutation, without storing a list.

A shuffled list of indices takes 8 bytes per sample, and its order depends on one library's random generator. Here the
index at a position is *computed*. A Feistel network permutes a domain of a x b >= size numbers (Black and Rogaway,
"Ciphers with Arbitrary Finite Domains", 2002), and is applied again to any result outside of the data set (cycle
walking). The order is a function of (seed, epoch, index) only. It does not depend on the world size, the number of
workers or torch's version, and a resumed run only asks for another position.
"""

from __future__ import annotations

import hashlib
from math import isqrt

import numpy as np

ROUNDS = 8


class EpochOrder:
    """Maps global sample positions to dataset indices; each epoch has its own permutation."""

    def __init__(self, size: int, seed: int, shuffle: bool = True, counts_on: bool = False) -> None:
        """
        Args:
            size: samples of one epoch, at least 1.
            seed: any integer; each gives another order.
            shuffle: False gives ``position % size``.
            counts_on: indices count on over the epochs, for data sets whose samples differ from epoch to epoch: index i
                of epoch e is ``e * size + i``.
        """
        if size < 1:
            raise ValueError(f"size={size} is below 1; give a data set that has samples")
        self.size, self.seed, self.shuffle, self.counts_on = size, seed, shuffle, counts_on

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        """Dataset indices (int64) at ``positions`` (int64, any shape; position p is in epoch ``p // size``)."""
        positions = np.asarray(positions, dtype=np.int64)
        epochs, within = np.divmod(positions, self.size)
        begin = epochs * self.size if self.counts_on else 0
        if not self.shuffle or self.size == 1:
            return within + begin
        indices = np.empty_like(within)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = permute(within[chosen], self.size, self.seed, int(epoch))
        return indices + begin


def permute(indices: np.ndarray, size: int, *key: int) -> np.ndarray:
    """Map ``indices`` (int64, 1-D, below ``size``) by the permutation of ``range(size)`` that belongs to this key."""
    left_size = max(isqrt(size - 1) + 1, 1)  # ceil(sqrt(size))
    right_size = -(-size // left_size)
    round_keys = _round_keys(key)
    result = np.asarray(indices, dtype=np.int64).astype(np.uint64)
    outside = np.arange(len(result))
    while len(outside):  # the domain exceeds the size by less than 2 sqrt(size), so walks are short
        result[outside] = _feistel(result[outside], left_size, right_size, round_keys)
        outside = outside[result[outside] >= size]
    return result.astype(np.int64)


def _feistel(values: np.ndarray, left_size: int, right_size: int, round_keys: np.ndarray) -> np.ndarray:
    """A bijection of ``range(left_size * right_size)``: each half is shifted by a hash of the other, in turn."""
    a, b = np.uint64(left_size), np.uint64(right_size)
    left, right = values // b, values % b
    for number, key in enumerate(round_keys):
        if number % 2:
            right = (right + _mix(left ^ key) % b) % b
        else:
            left = (left + _mix(right ^ key) % a) % a
    return left * b + right


def _mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al., 2014); uint64 arithmetic wraps on purpose."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _round_keys(key: tuple[int, ...]) -> np.ndarray:
    """Independent 64-bit round keys from a tuple of integers of any size."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)
