"""Tests of the watchdog's report about a hang: it names the ranks that hold the others up, and where each rank is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from trireme.trainer.callbacks.watchdog import Watchdog, describe, place_of


def beat(at: str, waits: str = "", step: int = 7) -> dict:
    return {"at": at, "waits": waits, "step": step, "count": 1}


def test_the_rank_that_holds_others_up_comes_first() -> None:
    loop = "trainer/loop.py:9 _agree"
    beats = {
        0: beat(loop, "all_reduce"),
        1: beat("my.py:3 load"),
        2: beat(loop, "all_reduce"),
        3: beat(loop, "broadcast"),
    }
    assert describe(beats, [], 61.2, Path("logs")) == (
        "no step for 61 s after step 7: rank 1 is in my.py:3 load (not in a collective); "
        "ranks 0, 2 wait in all_reduce, called from trainer/loop.py:9 _agree; "
        "rank 3 waits in broadcast, called from trainer/loop.py:9 _agree (all stacks: logs/stacks_rank_*.txt)"
    )


def test_a_silent_rank_is_reported() -> None:
    said = describe({0: beat("a.py:1 f", "gather"), 1: beat("b.py:1 g")}, [1, 2], 5, Path("logs"))
    assert "rank 1 is not heard of any more; rank 2 is not heard of any more; rank 0 waits in gather" in said
    assert "b.py" not in said


def test_a_place_is_the_line_of_the_callers_own_code() -> None:
    place = place_of(sys._getframe())
    assert place["waits"] == ""
    assert place["at"].endswith("test_a_place_is_the_line_of_the_callers_own_code")


@pytest.mark.parametrize("arguments", [{"timeout": 0}, {"action": "shout"}])
def test_wrong_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError):
        Watchdog(**arguments)
