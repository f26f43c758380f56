"""A task whose loss is a mean instead of a sum is refused at the first batch, on each rank, under several plans."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.kept_ranks import kept_ranks
from helpers.recipes import tiny_recipe
from trireme.errors import UserError
from trireme.trainer.build import train

ONE_STEP = ("trainer.max_steps=1", "trainer.eval_at_end=false", "checkpoint.at_end=false")


def _train(run_dir: Path, task: str, *overrides: str) -> str:
    try:
        train(tiny_recipe(run_dir, f"task._target_=helpers.tasks.{task}", *ONE_STEP, *overrides))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, ("plan=single",)),
        (1, ("plan=single", "trainer.micro_batch_size=1")),
        (1, ("plan=single", "data.packing=false")),
        (2, ("plan=ddp", "trainer.micro_batch_size=1")),
        (2, ("plan=fsdp_full_shard", "plan.precision=bf16")),
        (2, ("plan=tp",)),
        (2, ("plan=pp_1f1b",)),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, tuple) else str(value),
)
def test_a_mean_is_refused_and_a_sum_is_not(ranks: int, overrides: tuple[str, ...], tmp_path: Path) -> None:
    if overrides != ("plan=tp",):  # torch's loss_parallel supports neither means of split logits nor smoothing
        for said in kept_ranks(_train, ranks, tmp_path / "mean", "MeanLoss", *overrides):
            assert "helpers.tasks.MeanLoss.loss returns a mean" in said and "return a sum" in said
        assert kept_ranks(_train, ranks, tmp_path / "smooth", "SmoothedSum", *overrides) == [""] * ranks
    for said in kept_ranks(_train, ranks, tmp_path / "samples", "MeanOverSamples", *overrides):
        assert "helpers.tasks.MeanOverSamples.loss returns a mean" in said
