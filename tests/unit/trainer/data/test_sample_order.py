"""Tests of the shuffled order: each epoch visits every sample once, orders differ by seed and epoch, and all orders are
about equally likely.
"""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest
from trireme.trainer.data.sample_order import EpochOrder, permute

GOLDEN = [8, 5, 6, 9, 3, 2, 1, 7, 4, 0, 8, 3, 6, 7, 0, 1, 2, 9, 5, 4]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 10, 16, 17, 99, 100, 101, 1000, 4096, 65537])
def test_every_epoch_visits_every_sample_once(size: int) -> None:
    order = EpochOrder(size, seed=3)
    for epoch in (0, 1, 2**33):
        indices = order(np.arange(epoch * size, (epoch + 1) * size))
        assert indices.dtype == np.int64
        np.testing.assert_array_equal(np.sort(indices), np.arange(size))


def test_epochs_and_seeds_differ() -> None:
    first, second = (EpochOrder(1000, seed=seed)(np.arange(2000)) for seed in (0, 1))
    assert (first[:1000] == first[1000:]).mean() < 0.02
    assert (first[:1000] == second[:1000]).mean() < 0.02
    assert (first[:1000] == np.arange(1000)).mean() < 0.02


def test_the_order_is_a_function_of_the_position_alone() -> None:
    order, positions = EpochOrder(57, seed=9), np.arange(300)
    whole = order(positions)
    np.testing.assert_array_equal(order(positions[::-1]), whole[::-1])
    np.testing.assert_array_equal(np.concatenate([order(positions[i : i + 7]) for i in range(0, 300, 7)]), whole)
    np.testing.assert_array_equal(order(positions.reshape(4, 75)), whole.reshape(4, 75))


def test_the_order_is_the_same_everywhere() -> None:
    """Checkpoints hold only the step, so these numbers must never change."""
    assert EpochOrder(10, seed=0)(np.arange(20)).tolist() == GOLDEN


def test_all_permutations_of_three_are_about_equally_frequent() -> None:
    counts = Counter(tuple(permute(np.arange(3), 3, 5, epoch).tolist()) for epoch in range(3000))
    assert len(counts) == 6
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 25  # chi square, 5 degrees: p = 1e-4


@pytest.mark.parametrize("size", [10, 64])
def test_places_are_about_uniform(size: int) -> None:
    epochs = 2000
    table = np.zeros((size, size))
    for epoch in range(epochs):
        table[np.arange(size), permute(np.arange(size), size, 1, epoch)] += 1
    expected, freedom = epochs / size, (size - 1) ** 2
    assert ((table - expected) ** 2 / expected).sum() < freedom + 5 * np.sqrt(2 * freedom)


def test_neighbours_are_torn_apart() -> None:
    """Successive samples must not come from the same part of the data, as they do with a weak permutation."""
    indices = EpochOrder(100_000, seed=0)(np.arange(100_000)).astype(float)
    assert abs(np.corrcoef(indices[:-1], indices[1:])[0, 1]) < 0.02


def test_a_billion_samples_cost_no_memory() -> None:
    order, start = EpochOrder(10**9, seed=0), time.perf_counter()
    indices = order(np.arange(7 * 10**9 - 50_000, 7 * 10**9 + 50_000))
    assert time.perf_counter() - start < 2
    assert len(np.unique(indices[:50_000])) == 50_000 and indices.min() >= 0 and indices.max() < 10**9


def test_without_shuffling_the_order_is_the_source() -> None:
    assert EpochOrder(3, seed=0, shuffle=False)(np.arange(7)).tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0"):
        EpochOrder(0, seed=0)
