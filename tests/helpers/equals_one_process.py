"""Test helper that trains a model under a parallelism plan and compares its losses with those of one process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from parity.matrix import LAYOUTS

from .kept_ranks import kept_ranks
from .metrics import training, worst_difference
from .zero import load_deepspeed


def equals_one_process(train: Callable[..., str], folder: Path, name: str, plan: str) -> None:
    """Refuse losses that differ; the run of one process is made once and stays in ``folder``.

    Args:
        train: trains the model of this name; gets ``folder``, ``name``, the name of the run's folder and overrides, and
            returns an error or "".
        name: name of the model. Its recipe has four steps of eight samples.
    """
    ranks, alone, run = LAYOUTS[plan].ranks, folder / f"{name}-one", folder / f"{name}-{plan}"
    if plan.startswith("zero"):
        load_deepspeed()
    if not alone.exists():
        assert kept_ranks(train, 1, folder, name, alone.name) == [""]
    micro = f"trainer.micro_batch_size={8 // (2 * ranks)}"  # two micro-batches in a step
    assert kept_ranks(train, ranks, folder, name, run.name, f"plan={plan}", micro) == [""] * ranks
    one, many = training(alone), training(run)
    assert len(one) == 4 and worst_difference(one, many) < 2e-5
