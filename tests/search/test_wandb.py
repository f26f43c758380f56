"""Tests of W&B sweeps: the real client talks to a local server, where W&B's library ``sweeps`` chooses the values."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from helpers.searches import MIXED, rows_of, sample, searched
from helpers.wandb_server import KEY
from helpers.wandb_sweeps import SweepServer, sweep_server
from trireme.launch.search.engines import wandb_sweep
from trireme.launch.search.trial_starter import TrialStarter


def search(folder: Path, monkeypatch: pytest.MonkeyPatch, *given: str) -> SweepServer:
    """Search by a sweep; returns its server."""
    monkeypatch.setattr(wandb_sweep, "HEARTBEAT_SECONDS", 0.2)
    with sweep_server(engine=True) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        starter = TrialStarter(sample(), 1)  # started now, so that its processes inherit the variables
        try:
            searched(starter, folder, "search=wandb", "tracker=wandb", "callbacks.wandb.system_seconds=null", *given)
        finally:
            starter.close()
    return server


@pytest.mark.parametrize("method", ["bayes", "random"])
def test_a_sweep_by_the_library(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = search(
        tmp_path / "study", monkeypatch, MIXED, f"search.engine.method={method}", "search.trials=5", "search.jobs=2"
    )
    rows = rows_of(tmp_path / "study")
    assert len(rows) == 5 and {row["end"] for row in rows} <= {"done", "pruned"}
    by_rate = [sorted(points, key=lambda values: values["optimizer.lr"]) for points in (
        [row["values"] for row in rows], server.handed.values()
    )]  # fmt: skip
    assert by_rate[0] == by_rate[1]
    assert server.agents == ["agent0", "agent1"]


def test_a_grid_ends_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = "search.space={optimizer:[adamw,sgd],trainer.max_grad_norm:{low:0.5,high:1.0,step:0.5}}"
    search(
        tmp_path / "study", monkeypatch, space, "search.engine.method=grid", "search.trials=9", "trainer.max_steps=2"
    )
    assert len({str(row["values"]) for row in rows_of(tmp_path / "study")}) == 4 == len(rows_of(tmp_path / "study"))


def test_hyperband_ends_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs are told to end by the server. W&B's client sends it values every 15 seconds, so runs last half a minute on
    any machine. A good rate comes first, so that the others are among the worse half."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # trials find ``helpers`` there
    slow = "callbacks.slow={_target_: helpers.callbacks.Slow, seconds: 0.5}"
    early = "search.engine.early_terminate={type: hyperband, min_iter: 2, eta: 2}"
    rates = "search.space={optimizer.lr:[1e-2,1e-6,1e-7]}"
    given = (rates, "search.engine.method=grid", "search.trials=3", "trainer.max_steps=60", "trainer.eval_every=1")
    search(tmp_path / "study", monkeypatch, slow, early, *given)
    rows = rows_of(tmp_path / "study")
    pruned = [row for row in rows if row["end"] == "pruned"]
    assert pruned and all(row["reason"].endswith("by W&B") and row["steps"] < 60 for row in pruned)
