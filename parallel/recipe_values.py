"""The settings of a recipe that training strategies need besides the plan.

These are batch sizes, gradient clipping, optimizer, schedule, steps, hidden size, averaging and length of a sample.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RecipeValues:
    """Values of a recipe that are repeated in DeepSpeed's JSON and checked against the plan."""

    global_batch_size: int
    """``trainer.global_batch_size``"""
    micro_batch_size: int
    """``trainer.micro_batch_size``"""
    max_grad_norm: float | None
    """``trainer.max_grad_norm``"""
    max_steps: int | None
    """Optimizer steps of the run; None until ``trainer.epochs`` has been converted into steps."""
    optimizer: dict[str, Any]
    """The recipe's optimizer: ``_target_`` and its arguments."""
    schedule: str
    """``scheduler.name``"""
    warmup_steps: int | None
    """Steps of warm-up; None if the warm-up is a share of ``max_steps``, which is still unknown."""
    min_lr_ratio: float
    """Lowest learning rate as a share of the base one."""
    hidden_size: int
    """``hidden_size`` of the model's configuration."""
    ema: bool = False
    """Whether the recipe averages weights."""
    length: int | None = None
    """Greatest length of a sample; None if it is not known."""
    length_key: str = ""
    """Key of the recipe that sets ``length``."""
