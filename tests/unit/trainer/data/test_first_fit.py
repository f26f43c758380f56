"""Tests of packing documents into rows by first-fit-decreasing: the same bins as the textbook algorithm, speed, the
order of bins, and documents longer than a row.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from trireme.trainer.data.document_bins import DocumentBins, pieces
from trireme.trainer.data.first_fit import FirstFit


def plain(lengths: list[int], capacity: int) -> list[list[int]]:
    """First-fit-decreasing as in a textbook."""
    bins: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = next((one for one in bins if sum(one) + length <= capacity), None)
        if fitting is None:
            bins.append([length])
        else:
            fitting.append(length)
    return bins


@pytest.mark.parametrize("seed", range(60))
def test_bins_are_those_of_the_plain_algorithm(seed: int) -> None:
    draw = np.random.default_rng(seed)
    capacity, count = int(draw.integers(1, 60)), int(draw.integers(0, 120))
    skewed = np.minimum(draw.pareto(1, count) * 3 + 1, capacity).astype(np.int64)
    lengths = (draw.integers(1, capacity + 1, count) if seed % 3 else skewed).tolist()
    fit = FirstFit(np.bincount(np.array(lengths, np.int64), minlength=capacity + 1), capacity)
    found = [[length for length, _, count in fit.content(number) for _ in range(count)] for number in range(len(fit))]
    assert found == plain(lengths, capacity)
    places = [
        (length, first + k) for n in range(len(fit)) for length, first, count in fit.content(n) for k in range(count)
    ]
    assert sorted(places) == sorted((length, k) for length in set(lengths) for k in range(lengths.count(length)))


def test_millions_of_documents_are_packed_fast() -> None:
    lengths = np.minimum(np.random.default_rng(0).lognormal(6, 1.2, 2_000_000).astype(np.int64) + 1, 2048)
    start = time.process_time()
    bins = DocumentBins(lengths, 2048, seed=0)
    assert time.process_time() - start < 5
    assert bins.fill > 0.9999 and bins.filled == 2_000_000
    assert bins.attended == pytest.approx((lengths.astype(float) ** 2).sum() / lengths.sum())


LENGTHS = np.random.default_rng(1).integers(0, 33, 500)


def contents(bins: DocumentBins, turn: int) -> list[list[int]]:
    return [bins(turn * len(bins) + number)[0].tolist() for number in range(len(bins))]


def test_bins_follow_from_seed_and_pass_alone() -> None:
    bins, again = DocumentBins(LENGTHS, 32, seed=3), DocumentBins(LENGTHS, 32, seed=3)
    for turn in (0, 1, 7):
        found = contents(bins, turn)
        assert found == contents(again, turn)
        assert sorted(piece for row in found for piece in row) == np.flatnonzero(LENGTHS).tolist()
        assert all(LENGTHS[row].sum() <= 32 for row in found)
    assert contents(bins, 0) != contents(bins, 1)
    assert contents(bins, 0) != contents(DocumentBins(LENGTHS, 32, seed=4), 0)
    assert contents(DocumentBins(LENGTHS, 32, 3, shuffle=False), 0) == contents(DocumentBins(LENGTHS, 32, 4, False), 5)


def test_numbers_count_on_over_the_passes() -> None:
    bins = DocumentBins(LENGTHS, 32, seed=3)
    chosen, numbers = bins(2 * len(bins) + 5)
    assert (numbers - chosen).tolist() == [2 * len(LENGTHS)] * len(chosen)


@pytest.mark.parametrize(("overflow", "lengths", "lost"), [("cut", [3, 5, 5, 0, 5], 8), ("drop", [3, 5, 0, 0, 0], 18)])
def test_documents_longer_than_a_row_are_cut_or_dropped(overflow: str, lengths: list[int], lost: int) -> None:
    found = pieces(np.array([3, 5, 6, 0, 12]), 5, overflow)
    assert (found.lengths.tolist(), found.over, found.lost) == (lengths, 2, lost)
    assert f"{lost} of 26 tokens" in found.line("train", overflow)


def test_documents_longer_than_a_row_are_split() -> None:
    found = pieces(np.array([3, 5, 6, 0, 12]), 5, "split")
    assert found.lengths.tolist() == [3, 5, 5, 1, 0, 5, 5, 2] and found.lost == 0
    assert [found.place(piece) for piece in range(8)] == [
        (0, 0),
        (1, 0),
        (2, 0),
        (2, 5),
        (3, 0),
        (4, 0),
        (4, 5),
        (4, 10),
    ]
    assert "are divided" in found.line("train", "split")
