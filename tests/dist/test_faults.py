"""Runs three trials of ``benchmarks/faults.py``, which injects kills, damage and full disks: no run may be lost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from helpers.disk import unmount_below
from helpers.running import run_to_end

CAMPAIGN = Path(__file__).parents[2] / "benchmarks" / "faults.py"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_run_is_lost(tmp_path: Path) -> None:
    arguments = [sys.executable, str(CAMPAIGN), "--trials", "3", "--seed", "2", "--out", str(tmp_path)]
    try:  # the time limit of the campaign is below that of the test
        campaign = run_to_end(arguments, tmp_path, {"TMPDIR": str(tmp_path)}, timeout=780)
    finally:
        unmount_below(tmp_path)
    assert campaign.returncode == 0, campaign.stdout + campaign.stderr
    trials = json.loads((tmp_path / "faults.json").read_text())
    assert [trial["seed"] for trial in sorted(trials, key=lambda trial: trial["seed"])] == [2, 3, 4]
    assert all(any(trial["struck"]) and trial["codes"][-1] == 0 for trial in trials)
