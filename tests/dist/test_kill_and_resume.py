"""A run that is killed at a random step and started again has bit for bit the loss curve of an undisturbed run."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
from helpers.command import tiny_command
from helpers.metrics import lines
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from helpers.running import run_to_end, running
from trireme.trainer.build import train

ARGUMENTS = [
    "trainer.max_steps=60",
    "checkpoint.every=4",
    "trainer.eval_every=20",
    "scheduler=cosine",
    "+ema.decay=0.9",
    "model.config.attention_dropout=0.1",  # drawn in a fused kernel, so from the step's seed
    "model.config.hidden_dropout=0.1",
    "model.neftune_alpha=5",
]


def _undisturbed(run_dir: Path, *plan: str) -> None:
    train(tiny_recipe(run_dir, *ARGUMENTS, *plan))


def _kill_after(command: list[str], run_dir: Path, line_count: int) -> None:
    """SIGKILL the command and all its ranks after ``line_count`` lines of metrics."""
    with running(command, run_dir) as run:
        run.wait_for_lines(line_count, timeout=200, pause=0.005)  # steps are short
        assert run.process.poll() is None, "it ended before it could be killed"
        os.killpg(run.process.pid, signal.SIGKILL)
        assert run.end().returncode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "plan", [[], pytest.param(["plan=ddp", "--nproc", "2"], marks=pytest.mark.long)], ids=["single", "ddp"]
)
def test_the_curve_is_that_of_an_uninterrupted_run(tmp_path: Path, plan: list[str]) -> None:
    run_ranks(_undisturbed, 2 if plan else 1, tmp_path / "undisturbed", *plan[:1])
    seed = random.randrange(2**32)
    kill_at = sorted(random.Random(seed).sample(range(1, 55), 2))
    command = tiny_command(tmp_path / "killed", *ARGUMENTS, *plan)
    for count in kill_at:
        _kill_after(command, tmp_path / "killed", count)
    finished = run_to_end(command, tmp_path / "killed")
    assert finished.returncode == 0, finished.stderr
    assert lines(tmp_path / "killed") == lines(tmp_path / "undisturbed"), f"killed after {kill_at} lines (seed {seed})"
    assert [line["step"] for line in lines(tmp_path / "killed") if "loss" in line] == list(range(1, 61))
