"""Collect, as plain values, what DeepSpeed and other engines need to know of a recipe: batch sizes, gradient clipping,
optimizer, learning-rate schedule, and sizes of the model and the samples.
"""

from __future__ import annotations

from typing import Any

from ..models.hidden_size import hidden_size
from ..parallel.recipe_values import RecipeValues
from .component import Component
from .data.data_config import DataConfig
from .data.text_config import LENGTH_KEY
from .schedules import ScheduleConfig
from .settings import EmaConfig, TrainerConfig


def recipe_values(
    trainer: TrainerConfig,
    optimizer: Component,
    scheduler: ScheduleConfig,
    ema: EmaConfig | None,
    config: Any,
    data: DataConfig,
    max_steps: int | None = None,
) -> RecipeValues:
    """Batch, clipping, optimizer and schedule as plain values.

    Args:
        config: the model's transformers configuration.
        data: gives the greatest length of a sample.
        max_steps: optimizer steps of the run; None takes ``trainer.max_steps``.
    """
    steps = max_steps or trainer.max_steps
    warmup = scheduler.warmup_steps if steps is None else scheduler.warmup(steps)
    return RecipeValues(
        global_batch_size=trainer.global_batch_size,
        micro_batch_size=trainer.micro_batch_size,
        max_grad_norm=trainer.max_grad_norm,
        max_steps=steps,
        optimizer=optimizer,
        schedule=scheduler.name,
        warmup_steps=warmup,
        min_lr_ratio=scheduler.min_lr_ratio or 0.0,
        hidden_size=hidden_size(config.get_text_config()),
        ema=ema is not None,
        length=data.length,
        length_key=LENGTH_KEY,
    )
