"""Tests of a plan's parallelism degrees: how they follow from the number of ranks, which are refused, which ranks get
the same samples, and how many processes a plan starts by default.
"""

from __future__ import annotations

import pytest
from trireme.parallel.plan import Degrees, Plan


def test_auto_takes_what_is_left() -> None:
    assert Plan(replicate="auto").degrees(6) == Degrees(replicate=6)
    assert Plan().degrees(1) == Degrees()


def test_a_plan_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="spreads over 1"):
        Plan(name="single").degrees(2)
    with pytest.raises(ValueError, match="spreads over 4"):
        Plan(replicate=4).degrees(2)


@pytest.mark.parametrize("wrong", [{"replicate": 0}, {"replicate": "auto", "shard": "auto"}, {"shard": 2}])
def test_impossible_degrees(wrong: dict) -> None:
    with pytest.raises(ValueError):
        Plan(**wrong)


def test_data_ranks_are_those_that_see_other_samples() -> None:
    """Ranks are laid out pipeline x replicate x shard x tensor, tensor innermost."""
    degrees = Degrees(pipeline=2, replicate=2, shard=2, tensor=2)
    assert degrees.world_size == 16 and degrees.data == 4
    assert [degrees.data_rank(rank) for rank in range(16)] == [0, 0, 1, 1, 2, 2, 3, 3] * 2


def test_processes_to_start() -> None:
    assert Plan().default_world_size(8) == 1
    assert Plan(replicate="auto").default_world_size(8) == 8
    assert Plan(replicate="auto").default_world_size(0) == 1
    assert Plan(replicate=4).default_world_size(8) == 4
