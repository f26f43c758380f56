"""Tests of the callback ``nonfinite``: when one rank's loss is NaN, all ranks skip the step, stop, or go back to a
checkpoint.

This holds under every kind of parallelism plan.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.kept_ranks import kept_ranks
from helpers.metrics import lines, training
from helpers.recipes import tiny_recipe
from helpers.zero import can_compile, load_deepspeed
from trireme.errors import UserError
from trireme.trainer.build import train


def _long(plan: Any) -> Any:
    values, marks = (plan.values, plan.marks) if hasattr(plan, "values") else ((plan,), ())
    return pytest.param(*values, marks=[*marks, pytest.mark.long])


NEEDS_COMPILER = pytest.mark.skipif(not can_compile(), reason="DeepSpeed's operators need g++ and ninja")
GUARD = "callbacks=[minimal,nonfinite]"
COMMON = ("trainer.max_steps=7", "trainer.eval_at_end=false", "scheduler=cosine", "scheduler.warmup_ratio=0")
PLANS = [
    pytest.param("single", marks=pytest.mark.long),
    "ddp",
    pytest.param("fsdp_full_shard", marks=pytest.mark.long),
    "pp_1f1b",
    pytest.param("zero0", marks=[pytest.mark.long, NEEDS_COMPILER]),
    pytest.param("zero2", marks=NEEDS_COMPILER),
    pytest.param("zero2_bf16", marks=[pytest.mark.long, NEEDS_COMPILER]),
    pytest.param("zero3", marks=[pytest.mark.long, NEEDS_COMPILER]),
]


LONG_BUT_DDP = [plan if plan == "ddp" else _long(plan) for plan in PLANS]


@pytest.fixture(scope="module", autouse=True)
def _deepspeed() -> None:
    if can_compile():
        load_deepspeed()


def poison(ranks: int, *samples: int) -> str:
    return f"+callbacks.poison={{_target_: helpers.callbacks.Poison, rank: {ranks - 1}, samples: {list(samples)}}}"


def run(run_dir: Path, plan: str, *overrides: str) -> list[str]:
    """Train on the ranks of a plan; returns each rank's refusal, or an empty string."""
    name = plan.removesuffix("_bf16")
    chosen = [f"plan={name}", *(["plan.precision=bf16"] if plan.endswith("_bf16") else [])]
    return kept_ranks(_train, 1 if plan == "single" else 2, run_dir, *COMMON, *chosen, *overrides, timeout=280)


def _train(run_dir: Path, *overrides: str) -> str:
    try:
        train(tiny_recipe(run_dir, *overrides))
    except UserError as error:
        return str(error)
    return ""


def ranks_of(plan: str) -> int:
    return 1 if plan == "single" else 2


@pytest.mark.parametrize("plan", PLANS)
def test_a_skipped_step_changes_nothing(plan: str, tmp_path: Path) -> None:
    unchanged = "+callbacks.unchanged={_target_: helpers.callbacks.Unchanged}"
    refused = run(tmp_path, plan, GUARD, unchanged, poison(ranks_of(plan), 24, 32))
    assert refused == [""] * ranks_of(plan)
    seen = training(tmp_path)
    assert [line["step"] for line in seen if line.get("skipped")] == [4, 5]
    assert [line["step"] for line in seen if line["unchanged"]] == ([1, 4, 5] if seen[0]["lr"] == 0 else [4, 5])
    assert seen[-1]["skipped_steps"] == 2
    assert [line["step"] for line in seen if line["loss"] == "nan"] == [4, 5]


def test_too_many_skipped_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    refused = run(tmp_path, "ddp", GUARD, "callbacks.nonfinite.patience=2", poison(2, 8, 16, 24))
    for message in refused:
        assert "step 4 is not finite" in message and "3 steps in a row were skipped" in message
    assert not list((tmp_path / "checkpoints").glob("step_*"))


@pytest.mark.parametrize("plan", LONG_BUT_DDP)
def test_stop_saves_nothing_damaged(plan: str, tmp_path: Path) -> None:
    """The guard checks every 10 steps, and also before each save."""
    refused = run(
        tmp_path, plan, GUARD, "callbacks.nonfinite.action=stop", "checkpoint.every=3", poison(ranks_of(plan), 24)
    )
    assert len(set(refused)) == 1
    assert "the gradient of step 4 is not finite (samples " in refused[0]
    samples = refused[0].split("(samples ")[1].split(")")[0].split(", ")
    assert len(samples) == 8 // (ranks_of(plan) if plan != "pp_1f1b" else 1), "the share of the rank it came from"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000003"]


@pytest.mark.parametrize("plan", LONG_BUT_DDP)
def test_a_rollback_skips_the_samples_that_led_to_the_fault(plan: str, tmp_path: Path) -> None:
    rollback = ("callbacks.nonfinite.action=rollback", "callbacks.nonfinite.every=1", "checkpoint.every=2")
    assert run(tmp_path / "run", plan, GUARD, *rollback, poison(ranks_of(plan), 24)) == [""] * ranks_of(plan)
    # The same by hand: from the checkpoint of step 2, with the samples after those of step 4.
    assert not any(run(tmp_path / "by_hand", plan, "trainer.stop_at=2"))
    jump = "+callbacks.jump={_target_: helpers.callbacks.Jump, samples: 32}"
    assert not any(run(tmp_path / "by_hand", plan, jump))
    assert lines(tmp_path / "run") == lines(tmp_path / "by_hand")
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, 8))


def test_a_resume_after_a_rollback_skips_these_samples_too(tmp_path: Path) -> None:
    rollback = ("callbacks.nonfinite.action=rollback", "callbacks.nonfinite.every=1", "checkpoint.every=2")
    bad = poison(1, 24)
    assert not any(run(tmp_path / "run", "single", GUARD, *rollback, bad))
    arguments = ("checkpoint.at_end=false", *rollback)
    assert not any(run(tmp_path / "stopped", "single", GUARD, *arguments, bad, "trainer.stop_at=3"))
    stopped = [path.name for path in (tmp_path / "stopped" / "checkpoints").iterdir()]
    assert stopped == ["step_00000002"]
    # Step 4 is bad, the run goes back to 2 and saves; then it is stopped before the next save.
    assert not any(run(tmp_path / "stopped", "single", GUARD, *arguments, bad, "trainer.stop_at=5"))
    assert not any(run(tmp_path / "stopped", "single", GUARD, *rollback, bad))
    assert lines(tmp_path / "stopped") == lines(tmp_path / "run")
    log = (tmp_path / "stopped" / "log.txt").read_text()
    assert log.count("back from step 4 to step 2") == 1


def test_a_rollback_at_the_last_step_is_not_the_end(tmp_path: Path) -> None:
    """The run goes on, and the checkpoint that it writes again has the metric of its own step, so it stays the best."""
    arguments = ("callbacks.nonfinite.action=rollback", "callbacks.nonfinite.every=10", "checkpoint.every=4")
    best = ("trainer.eval_every=2", "checkpoint.keep_last=1", "checkpoint.keep_best=1")
    assert not any(run(tmp_path, "single", GUARD, *arguments, *best, poison(1, 48)))
    seen = lines(tmp_path)
    assert [line["step"] for line in seen if "loss" in line] == list(range(1, 8))
    assert "back from step 7 to step 4" in (tmp_path / "log.txt").read_text()
    written = json.loads((tmp_path / "checkpoints" / "step_00000004" / "manifest.json").read_text())
    assert [written["metric"]] == [line["eval_loss"] for line in seen if line["step"] == 4 and "eval_loss" in line]


def test_rollbacks_are_counted(tmp_path: Path) -> None:
    arguments = ("callbacks.nonfinite.action=rollback", "callbacks.nonfinite.every=1", "checkpoint.every=2")
    refused = run(tmp_path, "single", GUARD, *arguments, "callbacks.nonfinite.max_rollbacks=2", poison(1, 24, 32, 40))
    assert "the run has gone back 2 time(s) already" in refused[0]


def test_without_a_checkpoint_there_is_nothing_to_go_back_to(tmp_path: Path) -> None:
    arguments = ("callbacks.nonfinite.action=rollback", "callbacks.nonfinite.every=1")
    refused = run(tmp_path, "single", GUARD, *arguments, poison(1, 8))
    assert "must go back from step 2, but has no checkpoint yet" in refused[0]
