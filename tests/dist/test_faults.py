"""A few trials of the fault campaign, with the real command; `python benchmarks/faults.py` runs a hundred."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CAMPAIGN = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_run_is_lost(tmp_path: Path) -> None:
    arguments = ["--trials", "3", "--seed", "2", "--out", str(tmp_path)]
    campaign = subprocess.run([sys.executable, str(CAMPAIGN), *arguments], capture_output=True, text=True, timeout=900)
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    trials = json.loads((tmp_path / "faults.json").read_text())
    assert [trial["seed"] for trial in sorted(trials, key=lambda trial: trial["seed"])] == [2, 3, 4]
    assert all(any(trial["struck"]) and trial["codes"][-1] == 0 for trial in trials)
