"""A SLURM job array on a real two-node cluster runs several workers, which share the trials of one search."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest
from helpers.command import trireme, trireme_here
from helpers.metrics import lines
from helpers.searches import RATES, rows_of, search_arguments
from helpers.slurm import Cluster, missing

pytestmark = [
    pytest.mark.skipif(bool(missing()), reason=f"needs SLURM: {missing()}"),
    pytest.mark.timeout(1200),
]
TESTS = Path(__file__).parents[1]
RANDOM = "search.sampler={_target_: optuna.samplers.RandomSampler}"


@pytest.mark.slow
def test_two_workers_share_a_study_of_eight(
    slurm: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", f"{TESTS}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    folder = tmp_path / "study"
    slow = "+callbacks.slow={_target_: helpers.callbacks.SlowAtFirst, seconds: 0.3}"  # no worker takes all trials
    words = (RATES, RANDOM, "search.trials=8", "search.pruner=null", "launch=slurm", "search.workers=2", slow)
    result = trireme(*search_arguments(folder, *words))
    job = re.match(r"submitted job (\d+): 2 workers", result.stdout)
    assert job, result.stdout + result.stderr
    for task in range(2):
        assert slurm.wait(f"{job[1]}_{task}")["JobState"] == "COMPLETED", said(folder)
    rows = rows_of(folder)
    assert [row["trial"] for row in rows] == list(range(8))
    assert {row["end"] for row in rows} == {"done"}, said(folder)
    assert len({row["values"]["optimizer.lr"] for row in rows}) == 8
    for row in rows:
        assert [line["step"] for line in lines(folder / row["folder"]) if "loss" in line] == [1, 2, 3, 4]
    texts = [file.read_text() for file in sorted((folder / "logs").glob("slurm_*.log"))]
    ran = [set(re.findall(r"^trial (\d+): eval_loss", text, re.MULTILINE)) for text in texts]
    assert len(ran) == 2 and all(ran) and not ran[0] & ran[1], "each has run some, and none was run twice"
    assert len(ran[0] | ran[1]) == 8
    shown = trireme_here(capsys, "search", str(folder), "--table")
    assert shown.returncode == 0 and "best: trial" in shown.stdout


def said(folder: Path) -> str:
    return "\n".join(file.read_text() for file in (folder / "logs").glob("slurm_*.log"))
