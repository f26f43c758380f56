"""Tests of searches whose hyperparameters come from an engine other than Optuna: a user's own class, or a W&B sweep."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.metrics import lines
from helpers.searches import RATES, rows_of, sample, searched
from helpers.wandb_server import KEY
from helpers.wandb_sweeps import sweep_server
from trireme.errors import UserError
from trireme.launch.search.engines import wandb_sweep
from trireme.launch.search.trial_starter import TrialStarter

OWN_CODE = """
from trireme.launch.search.engines.engine import Engine, Verdict

class Listed(Engine):
    '''Tries listed rates; pauses the first trial once, and ends trials that are worse than a bound.'''
    TITLE = "my list"
    def __init__(self, rates, bound):
        self.rates, self.bound, self.paused = rates, bound, False
    def suggest(self):
        number = len(self.store.trials)
        return {"optimizer.lr": self.rates[number]} if number < len(self.rates) else None
    def verdict(self, claim, step, value):
        super().verdict(claim, step, value)
        if claim.number == 0 and step == 2 and not self.paused:
            self.paused = True
            return Verdict(pause=True)
        return Verdict(f"above {self.bound} at step {step}" if step == 3 and value > self.bound else "")
"""
OWN = "search.engine={_target_: listed_rates.Listed, rates: [0.001, 0.05, 0.00001], bound: %s}"
SWEEP = ("search=wandb", "tracker=wandb", "callbacks.wandb.system_seconds=null", "trainer.max_steps=4", RATES)


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrialStarter]:
    folder = tmp_path_factory.mktemp("own")
    (folder / "listed_rates.py").write_text(OWN_CODE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        started = TrialStarter(sample(), 1)
        yield started
        started.close()


@pytest.mark.slow
def test_a_custom_engine(starter: TrialStarter, tmp_path: Path) -> None:
    """The engine chooses values, prunes, ends the search, and pauses a trial, which resumes from its checkpoint."""
    folder = tmp_path / "study"
    given = (RATES, "search.sampler=null", "search.pruner=null", "search.own_first=false", "search.trials=9")
    searched(starter, folder, *given, OWN % 6.2)
    rows = rows_of(folder)
    assert [row["values"]["optimizer.lr"] for row in rows] == [0.001, 0.05, 0.00001]
    assert {row["end"] for row in rows} == {"done", "pruned"} and rows[2]["end"] == "pruned"
    assert "above 6.2 at step 3" in rows[2]["reason"]
    first = folder / rows[0]["folder"]
    assert [line["step"] for line in lines(first) if "loss" in line] == [1, 2, 3, 4][: rows[0]["steps"]]
    assert "resuming from" in (first / "log.txt").read_text()


@pytest.mark.slow
def test_a_sweep_of_wandb(starter: TrialStarter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb_sweep, "HEARTBEAT_SECONDS", 0.2)
    points = [{"optimizer.lr": rate} for rate in (1e-3, 2e-2)]
    with sweep_server(points=points) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        own = TrialStarter(sample(), 1)  # started now, so that its processes inherit the variables
        try:
            searched(own, tmp_path / "study", *SWEEP, "search.trials=5")
        finally:
            own.close()
    rows = rows_of(tmp_path / "study")
    assert [row["values"] for row in rows] == points and {row["end"] for row in rows} == {"done"}
    assert server.sweep["metric"] == {"name": "eval/loss", "goal": "minimize"} and server.sweep["method"] == "bayes"
    for run, row in zip(("run0", "run1"), rows, strict=True):
        assert server.values(run)[-1] == pytest.approx(row["eval_loss"])
        assert server.runs[run]["config"]["optimizer.lr"]["value"] == row["values"]["optimizer.lr"]


def test_a_sweep_needs_runs_that_report(starter: TrialStarter, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="add tracker=wandb"):
        searched(starter, tmp_path / "study", "search=wandb", RATES)
