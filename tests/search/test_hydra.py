"""``trireme train -m`` works with hydra-optuna-sweeper, which chooses jobs by the metrics of earlier jobs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from helpers.command import ROOTS, trireme
from helpers.recipes import TINY

FEW_STEPS = ("trainer.max_steps=4", "trainer.eval_every=4")
SWEEPER = (
    "hydra/sweeper=optuna",
    "hydra.sweeper.n_trials=5",
    "hydra.sweeper.n_jobs=1",
    "hydra.sweeper.direction=minimize",
)


def test_jobs_are_chosen_by_the_metric_of_earlier_ones(tmp_path: Path) -> None:
    rates = "optimizer.lr=tag(log,interval(1e-5,1e-1))"
    given = [ROOTS, f"run.dir={tmp_path / 'sweep'}", *FEW_STEPS, *SWEEPER, rates]
    done = trireme("train", str(TINY), "-m", *given, timeout=280)
    assert done.returncode == 0, done.stderr
    values = [float(each) for each in re.findall(r"eval_loss\s+(\d+\.\d+).*done", done.stdout)]
    assert len(values) == 5
    found = yaml.safe_load((tmp_path / "sweep" / "optimization_results.yaml").read_text())
    assert found["best_value"] == pytest.approx(min(values), abs=1e-4), "the sweeper has got every job's metric"
