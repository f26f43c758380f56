"""Test with the real Flyte library: the deck (HTML report) of a task that trains and resumes a run, and a refusal
outside a task.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tracked import lines_of, train_twice
from trireme.errors import UserError
from trireme.trainer.trackers.flyte import Flyte


def test_the_deck_of_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flytekit import current_context, task

    monkeypatch.setenv("PYTHONPATH", "")
    run_dir, decks = tmp_path / "runs" / "oars", []

    @task(enable_deck=True)
    def train() -> str:
        known = train_twice(run_dir, "flyte", artifacts="[curve,samples]")
        decks.extend(deck for deck in current_context().decks if deck.name == "trireme: oars")
        return known

    assert train() == "oars"
    assert len(decks) == 2, "a deck for each start of the run"
    first, last = (deck.html for deck in decks)
    for tag, step, value in lines_of(run_dir):
        assert f"<td>{value:.6g}</td>" in (first if step <= 3 else last), (tag, step)
    assert "interrupted" in first or "trainer.stop_at" in first
    assert "finished: all 6 steps are done" in last and "trainer.global_batch_size" in last
    assert 'src="data:image/png;base64,' in last and "--- step 6" in last


def test_outside_of_a_task_it_is_refused() -> None:
    with pytest.raises(UserError, match=r"Flyte: this run is no part of a Flyte task\n  fix: call trireme.train in"):
        Flyte()
