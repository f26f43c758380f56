"""When a rank hangs, the watchdog reports the rank, its line of code, and the collective that other ranks wait in, and
can end the run.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

import pytest
from helpers.command import tiny_command
from helpers.metrics import lines
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from helpers.running import running
from trireme.trainer.build import train

TESTS = Path(__file__).parents[1]
COMMON = ("trainer.max_steps=6", "trainer.eval_at_end=false", "callbacks=[minimal,watchdog]")


def sleeper(rank: int, seconds: float, attempt: str = "null") -> str:
    return (
        f"+callbacks.sleeper={{_target_: helpers.callbacks.Sleeper, rank: {rank}, step: 3, seconds: {seconds}, "
        f"attempt: {attempt}}}"
    )


def _train(run_dir: Path, *overrides: str) -> int:
    return train(tiny_recipe(run_dir, *overrides)).step


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "ranks", "waiting"),
    [
        ("ddp", 3, r"ranks 0, 2 wait in all_reduce, called from \S*parallel/mesh.py:\d+ (_reduce|result)"),
        pytest.param("single", 1, "", marks=pytest.mark.long),
        pytest.param("fsdp_full_shard", 2, r"rank 0 waits in \w+, called from \S+:\d+ \w+", marks=pytest.mark.long),
        pytest.param("pp_1f1b", 2, r"rank 0 waits in \w+, called from \S+:\d+ \w+", marks=pytest.mark.long),
    ],
)
def test_the_rank_that_holds_the_others_up_is_named(plan: str, ranks: int, waiting: str, tmp_path: Path) -> None:
    """One standstill gives one report, however long it lasts; training goes on when the rank does."""
    watch = ("callbacks.watchdog.timeout=6", "trainer.global_batch_size=12")
    last = ranks // 2
    steps = run_ranks(_train, ranks, tmp_path, *COMMON, f"plan={plan}", *watch, sleeper(last, 16), timeout=250)
    assert steps == [6] * ranks
    log = (tmp_path / "log.txt").read_text()
    reports = [line for line in log.splitlines() if "trireme.watchdog" in line]
    assert len(reports) == 1, log
    culprit = rf"no step for \d+ s after step 3: rank {last} is in \S*helpers/callbacks.py:\d+ on_step_begin "
    culprit += r"\(not in a collective\)"
    assert re.search(f"{culprit}{'; ' if waiting else ''}{waiting} \\(all stacks", reports[0]), reports[0]
    for rank in range(ranks):
        stacks = (tmp_path / "logs" / f"stacks_rank_{rank}.txt").read_text()
        assert ("on_step_begin" in stacks) == (rank == last)


@pytest.mark.long
def test_it_ends_the_run_and_the_run_goes_on_when_started_again(tmp_path: Path) -> None:
    """``end`` leaves no rank in a collective; a restart takes the last checkpoint."""
    environment = {"PYTHONPATH": f"{TESTS}:{os.environ.get('PYTHONPATH', '')}"}
    arguments = (*COMMON, "callbacks.watchdog.timeout=10", "callbacks.watchdog.action=end", "checkpoint.every=2")
    command = tiny_command(tmp_path, *arguments, "plan=ddp", "--nproc", "2", sleeper(1, 1000, "0"))
    with running(command, tmp_path, environment) as run:
        run.wait_for_lines(3)
        assert len(run.ranks) == 2
        hung = time.monotonic()
        result = run.end(timeout=90)
        assert time.monotonic() - hung < 60
    assert result.returncode == 1
    ends = result.stderr.rstrip().splitlines()
    assert re.search(
        r"rank 1 is in \S*callbacks.py:\d+ on_step_begin \(not in a collective\); rank 0 waits in", ends[-2]
    )
    assert ends[-1].startswith("(rank 0 of 2")
    with running([*command, "--max-restarts", "1"], tmp_path, environment) as run:
        assert run.end().returncode == 0
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]
