"""A run saved under one plan goes on under another: same samples, same losses; under the same plan, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.metrics import lines, training, worst_difference
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from helpers.zero import load_deepspeed
from trireme.trainer.build import train

# GPT-2 has what is hardest to save: a tied head (two copies under a pipeline) and fused projections (in pieces under
# tensor parallelism).
COMMON = [
    "model=gpt2_tiny",
    "trainer.max_steps=6",
    "trainer.global_batch_size=16",
    "trainer.micro_batch_size=2",
    "trainer.eval_samples=8",
]


def _train(run_dir: Path, *overrides: str) -> None:
    train(tiny_recipe(run_dir, *COMMON, *overrides))


def _start(plan: str, ranks: int, run_dir: Path, *overrides: str) -> None:
    if plan.startswith("zero"):
        load_deepspeed()
    if ranks == 1:
        _train(run_dir, f"plan={plan}", *overrides)
    else:
        run_ranks(_train, ranks, run_dir, f"plan={plan}", *overrides)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed")
    _train(folder)
    return folder


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("zero2", 2), ("fsdp_full_shard", 2)),
        (("tp", 2), ("pp_1f1b", 2)),
        (("3d_zero1", 8), ("single", 1)),
        (("single", 1), ("tp_sp", 2)),
        (("fsdp_hybrid_shard", 4), ("tp", 2)),
        (("pp_zero_bubble", 2), ("zero3", 2)),
        (("zero3", 2), ("dp_pp", 4)),
    ],
    ids=lambda plan: plan[0],
)
def test_another_plan_goes_on(
    before: tuple[str, int], after: tuple[str, int], tmp_path: Path, undisturbed: Path
) -> None:
    _start(*before, tmp_path, "trainer.stop_at=3", "trainer.eval_at_end=false")
    _start(*after, tmp_path)
    one, resumed = training(undisturbed), training(tmp_path)
    assert [line["step"] for line in resumed] == [1, 2, 3, 4, 5, 6]
    assert [line["tokens"] for line in resumed] == [line["tokens"] for line in one]
    assert worst_difference(one, resumed) < 1e-5


@pytest.mark.parametrize("plan", ["fsdp_shard_grad_op", "tp_sp", "pp_interleaved", "zero1", "zero3"])
def test_the_same_plan_goes_on_bit_for_bit(plan: str, tmp_path: Path) -> None:
    average = [] if plan.startswith("zero") else ["+ema.decay=0.9"]
    _start(plan, 2, tmp_path / "whole", *average)
    _start(plan, 2, tmp_path / "parts", *average, "trainer.stop_at=3", "trainer.eval_at_end=false")
    _start(plan, 2, tmp_path / "parts", *average)
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
