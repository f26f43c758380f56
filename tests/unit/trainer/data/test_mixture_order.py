"""Tests of the order in which a mixture takes samples from its data sources: in any window of samples, the number of
each source differs by at most two from its configured share.

The source and the sample at any position can be computed without those before it.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
from trireme.trainer.data.mixture_order import LONGEST, Interleave, MixedOrder, seed_of, whole_parts
from trireme.trainer.data.sample_order import EpochOrder


def worst_window(weights: dict[str, float], positions: int) -> float:
    """Largest difference, in samples, between a source's count in any window and its share of the window."""
    interleave = Interleave(weights)
    sources = interleave.sources(np.arange(positions))
    worst = 0.0
    for number, share in enumerate(interleave.shares.values()):
        ahead = np.cumsum((sources == number) - share, dtype=float)
        ahead = np.concatenate([[0.0], ahead])
        worst = max(worst, float(ahead.max() - ahead.min()))
    return worst


@pytest.mark.parametrize(
    "weights", [(3, 1), (1, 1), (9, 1), (2, 1, 1), (5, 3, 2), (7, 2, 1), (3, 2, 1), (0.7, 0.2, 0.1), (1,), (1, 1, 1, 1)]
)
def test_in_every_window_a_source_is_within_one_sample_of_its_share(weights: tuple[float, ...]) -> None:
    assert worst_window({f"s{place}": weight for place, weight in enumerate(weights)}, 1000) <= 1 + 1e-9


def test_in_every_window_any_weights_are_within_two_samples() -> None:
    draw = random.Random(0)
    for sources in (2, 3, 5, 9, 20):
        for _ in range(5):
            weights = {f"s{place}": draw.choice([draw.randint(1, 9), draw.randint(1, 200)]) for place in range(sources)}
            assert worst_window(weights, 3000) < (1 if sources == 2 else 2)


def test_weights_become_whole_parts() -> None:
    assert whole_parts([0.7, 0.2, 0.1]) == [7, 2, 1] == whole_parts([70, 20, 10])
    assert whole_parts([0.25, 3]) == [1, 12]
    many = whole_parts([3_123_456_789, 1_234_567, 1e-9])
    assert sum(many) <= LONGEST + 1 and min(many) == 1
    assert many[1] / many[0] == pytest.approx(1_234_567 / 3_123_456_789, rel=0.02)


def test_the_order_of_a_recipe_does_not_matter() -> None:
    one, other = Interleave({"wiki": 3, "code": 1}), Interleave({"code": 0.25, "wiki": 0.75})
    positions = np.arange(100)
    assert one.shares == other.shares == {"code": 0.25, "wiki": 0.75}
    assert (one.sources(positions) == other.sources(positions)).all()


def test_each_source_has_passes_of_its_own() -> None:
    sizes = {"code": 5, "wiki": 40}
    order = MixedOrder(Interleave({"wiki": 3, "code": 1}), sizes, seed=4, shuffle=True)
    indices = order(np.arange(160).reshape(8, 20)).reshape(-1)
    code, wiki = indices[indices < 5], indices[indices >= 5] - 5
    assert len(code) == 40 and len(wiki) == 120
    for source, found, name in ((5, code, "code"), (40, wiki, "wiki")):
        passes = found.reshape(-1, source)
        assert all(sorted(one) == list(range(source)) for one in passes.tolist())
        assert len({tuple(one) for one in passes.tolist()}) > 1  # shuffled anew in each pass
        assert (found == EpochOrder(source, seed_of(4, name))(np.arange(len(found)))).all()
    plain = MixedOrder(Interleave({"wiki": 3, "code": 1}), sizes, seed=4, shuffle=False)(np.arange(160))
    assert plain[plain < 5].tolist() == [*range(5)] * 8


def test_any_position_is_found_without_those_before() -> None:
    order = MixedOrder(Interleave({"a": 5, "b": 3, "c": 2}), {"a": 11, "b": 400, "c": 7}, seed=0, shuffle=True)
    whole = order(np.arange(5000))
    for first in (0, 1, 9, 10, 4321):
        assert (order(np.arange(first, first + 300)) == whole[first : first + 300]).all()
    counts = order.interleave.counts(4321)
    sources = order.interleave.sources(np.arange(4321))
    assert counts.tolist() == [int((sources == number).sum()) for number in range(3)]
    far = 10**12
    assert (order.interleave.sources(np.arange(far, far + 10)) == order.interleave.sources(np.arange(10))).all()
