"""Tests of grouping samples by length: every sample comes once per epoch, the order can be continued at any position,
and the samples of a step have similar lengths.
"""

from __future__ import annotations

import numpy as np
import pytest
from trireme.trainer.data.length_order import LengthOrder

LENGTHS = np.random.default_rng(0).integers(1, 400, 1003)


def order(seed: int = 3, step: int = 8, shuffle: bool = True) -> LengthOrder:
    return LengthOrder(LENGTHS, seed, shuffle, step, steps=16)


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("step", [1, 8, 2000])
def test_a_pass_holds_every_sample_once(step: int, shuffle: bool) -> None:
    for epoch in (0, 1, 5):
        found = order(step=step, shuffle=shuffle)(np.arange(epoch * 1003, (epoch + 1) * 1003))
        assert sorted(found.tolist()) == list(range(1003))


def test_a_position_is_a_function_of_seed_and_pass() -> None:
    positions = np.arange(5 * 1003)
    found = order()(positions)
    assert order()(positions[::-1].copy())[::-1].tolist() == found.tolist()
    assert order()(positions[777:2005]).tolist() == found[777:2005].tolist()
    assert order(seed=4)(positions).tolist() != found.tolist()
    assert found[:1003].tolist() != found[1003:2006].tolist()


def test_steps_hold_similar_lengths_and_no_trend() -> None:
    found = LENGTHS[order()(np.arange(5 * 1000))].reshape(-1, 8)
    padded, alone = found.max(1).sum() * 8, found.sum()
    plain = LENGTHS[np.random.default_rng(1).permutation(5000) % 1003].reshape(-1, 8)
    assert padded / alone < 1.12 < 1.6 < plain.max(1).sum() * 8 / plain.sum()
    longest = found.max(1)[:16]
    assert (np.diff(longest) > 0).sum() > 3 and (np.diff(longest) < 0).sum() > 3
