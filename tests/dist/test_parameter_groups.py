"""Per-parameter learning rates and weight decays give the same losses under several plans, and after a resume."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.kept_ranks import kept_ranks
from helpers.metrics import training, worst_difference
from helpers.recipes import TINY
from helpers.several_runs import train_all
from helpers.zero import load_deepspeed
from parity.matrix import LAYOUTS, TOLERANCE

RULES = "+parameter_groups.rules=[{names: [transformer.wte.weight], lr_ratio: 0.1, weight_decay: 0.5}, "
RULES += "{names: ['*.h.0.*'], lr: 0.02}]"
COMMON = ("model=gpt2_tiny", "trainer.max_steps=4", "trainer.global_batch_size=16", "trainer.eval_at_end=false")
PLANS = ("fsdp_full_shard", "ddp", "zero1", "zero2", "zero3", "zero2_offload", "tp", "pp_1f1b", "3d")


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one process; its tied embedding learns slowly and decays, its first block learns fast."""
    folder = tmp_path_factory.mktemp("groups") / "one"
    train_all([(TINY, folder, [*COMMON, RULES, "trainer.micro_batch_size=16"])])
    return folder


def _spread(plan: str, folder: Path, *overrides: str) -> Path:
    layout = LAYOUTS[plan]
    if plan.startswith("zero"):
        load_deepspeed()
    micro = 16 // (layout.data * max(2, layout.least))
    job = (TINY, folder, [*COMMON, RULES, f"plan={plan}", f"trainer.micro_batch_size={micro}", *overrides])
    kept_ranks(train_all, layout.ranks, [job], timeout=300)
    return folder


@pytest.mark.parametrize(
    "plan", [pytest.param(plan, marks=() if plan == PLANS[0] else pytest.mark.long) for plan in PLANS]
)
def test_groups_are_those_of_one_process(plan: str, one: Path, tmp_path: Path) -> None:
    assert worst_difference(training(one), training(_spread(plan, tmp_path / "many"))) < TOLERANCE


def test_groups_change_the_trajectory(one: Path, tmp_path: Path) -> None:
    train_all([(TINY, tmp_path / "plain", [*COMMON, "trainer.micro_batch_size=16"])])
    assert worst_difference(training(one), training(tmp_path / "plain")) > 100 * TOLERANCE


@pytest.mark.long
@pytest.mark.parametrize(("before", "after"), [("ddp", "zero3"), ("zero1", "pp_1f1b"), ("fsdp_full_shard", "ddp")])
def test_a_resume_under_another_plan_has_the_same_groups(before: str, after: str, one: Path, tmp_path: Path) -> None:
    _spread(before, tmp_path / "run", "trainer.stop_at=2", "checkpoint.every=2")
    _spread(after, tmp_path / "run")
    assert worst_difference(training(one), training(tmp_path / "run")) < TOLERANCE
