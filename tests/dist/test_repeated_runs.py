"""Ranks may train several times in one process: each run joins a group of its own, and leaves no model behind."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe, with_few_files
from helpers.zero import load_deepspeed
from transformers import PreTrainedModel
from trireme.trainer.build import train


def _train_twice(plan: str, folder: Path) -> int:
    """Models that are left in the process after two runs."""
    for name in ("first", "second"):
        train(tiny_recipe(folder / name, *with_few_files([]), f"plan={plan}", "trainer.max_steps=2"))
    gc.collect()
    return sum(isinstance(each, PreTrainedModel) for each in gc.get_objects())


@pytest.mark.parametrize("plan", ["zero2", "zero3", "fsdp_full_shard"])
def test_ranks_train_twice(plan: str, tmp_path: Path) -> None:
    load_deepspeed()
    assert run_ranks(_train_twice, 2, plan, tmp_path) == [0, 0]
    assert (tmp_path / "second" / "checkpoints").is_dir()
