"""Tests of searches with SigOpt's real client and its local optimizer ``sigoptlite``: a search that is continued, and
values that trireme refuses.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.searches import MIXED, rows_of, sample, searched
from trireme.launch.search.trial_starter import TrialStarter


@pytest.fixture(scope="module")
def starter() -> Iterator[TrialStarter]:
    started = TrialStarter(sample(), 1)
    yield started
    started.close()


def test_a_continued_search_equals_an_uninterrupted_one(starter: TrialStarter, tmp_path: Path) -> None:
    """Twelve trials: random draws at first, then Gaussian processes."""
    searched(starter, tmp_path / "whole", "search=sigopt", MIXED, "search.trials=12", "trainer.max_steps=2")
    for trials in (5, 12):
        searched(starter, tmp_path / "parts", "search=sigopt", MIXED, f"search.trials={trials}", "trainer.max_steps=2")
    whole, parts = ([row["values"] for row in rows_of(tmp_path / name)] for name in ("whole", "parts"))
    assert whole == parts and len({str(values) for values in whole}) == 12
    assert rows_of(tmp_path / "whole")[0]["own"]


def test_refused_values_are_reported_as_failures(starter: TrialStarter, tmp_path: Path) -> None:
    space = "search.space={trainer.micro_batch_size:[2,3],optimizer.lr:{low:1e-4,high:1e-1,log:true}}"
    searched(
        starter,
        tmp_path / "study",
        "search=sigopt",
        space,
        "search.trials=6",
        "search.max_failures=6",
        "trainer.max_steps=2",
    )
    found = {(row["values"]["trainer.micro_batch_size"], row["end"]) for row in rows_of(tmp_path / "study")}
    assert found == {(2, "done"), (3, "refused")}
