"""SIGKILL at a random step, the same command again: the loss curve is the uninterrupted one, bit for bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from helpers.command import tiny_command
from helpers.metrics import lines
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from trireme.trainer.build import train

ARGUMENTS = [
    "trainer.max_steps=60",
    "checkpoint.every=4",
    "trainer.eval_every=20",
    "scheduler=cosine",
    "+ema.decay=0.9",
    "model.config.attention_dropout=0.1",
]


def _start(run_dir: Path, plan: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        tiny_command(run_dir, *ARGUMENTS, *plan),
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def _undisturbed(run_dir: Path, *plan: str) -> None:
    train(tiny_recipe(run_dir, *ARGUMENTS, *plan))


def _kill_after(process: subprocess.Popen[bytes], metrics: Path, line_count: int) -> None:
    """SIGKILL the command and all its ranks once so many lines are written."""
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if metrics.exists() and metrics.read_bytes().count(b"\n") >= line_count:
            break
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "plan", [[], pytest.param(["plan=ddp", "--nproc", "2"], marks=pytest.mark.long)], ids=["single", "ddp"]
)
def test_the_curve_is_that_of_an_uninterrupted_run(tmp_path: Path, plan: list[str]) -> None:
    run_ranks(_undisturbed, 2 if plan else 1, tmp_path / "undisturbed", *plan[:1])
    seed = random.randrange(2**32)
    kill_at = sorted(random.Random(seed).sample(range(1, 55), 2))
    for count in kill_at:
        _kill_after(_start(tmp_path / "killed", plan), tmp_path / "killed" / "metrics.jsonl", count)
    finished = _start(tmp_path / "killed", plan)
    _, errors = finished.communicate(timeout=300)
    assert finished.returncode == 0, errors.decode()
    assert lines(tmp_path / "killed") == lines(tmp_path / "undisturbed"), f"killed after {kill_at} lines (seed {seed})"
    assert [line["step"] for line in lines(tmp_path / "killed") if "loss" in line] == list(range(1, 61))
