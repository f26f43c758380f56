"""What a strategy must know of a recipe beside the plan: batch sizes, clipping, optimizer, schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class RecipeValues:
    """What DeepSpeed's JSON repeats of a recipe."""

    global_batch_size: int
    """``trainer.global_batch_size``"""
    micro_batch_size: int
    """``trainer.micro_batch_size``"""
    max_grad_norm: float | None
    """``trainer.max_grad_norm``"""
    max_steps: int | None
    """Optimizer steps of the run; None as long as ``trainer.epochs`` has not been turned into steps."""
    optimizer: dict[str, Any]
    """The recipe's optimizer: ``_target_`` and its arguments."""
    schedule: str
    """``scheduler.name``"""
    warmup_steps: int | None
    """Steps of warm-up; None as long as ``max_steps`` is unknown and the warm-up a share of it."""
    min_lr_ratio: float
    """Lowest learning rate as a share of the base one."""
    hidden_size: int
    """Of the model's configuration."""
    ema: bool = False
    """Whether the recipe averages weights."""
