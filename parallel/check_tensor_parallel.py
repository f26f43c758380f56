"""Check, before launch and without importing torch, that tensor parallelism can split a model, and that sequence
parallelism can split its samples.
"""

from __future__ import annotations

from typing import Any

from ..errors import Problem
from ..models.family import ModelFamily, TensorPlan, families
from .recipe_values import RecipeValues

LARGEST = 256
"""Largest number of tensor ranks that a fix proposes."""


def check_tensor(family: ModelFamily, config: Any, tensor: int) -> list[Problem]:
    """Problems that keep a model of ``family`` from being split over ``tensor`` ranks.

    A vocabulary of any size can be split, since the last ranks may hold fewer rows.

    Args:
        config: the model's transformers configuration.
    """
    if tensor == 1:
        return []
    if family.tensor is None:
        able = ", ".join(name for name, other in families().items() if other.tensor is not None)
        why = f"{family.title} {family.no_tensor or 'has no tensor plan'}"
        return [Problem("plan.tensor", why, f"use 1, or a family that has one: {able}", tensor)]
    return [
        Problem("plan.tensor", why, _fix(family.tensor, config, tensor), tensor)
        for why in _obstacles(family.tensor, config, tensor)
    ]


def check_sequence(family: ModelFamily, tensor: int, recipe: RecipeValues, latents: int | None = None) -> list[Problem]:
    """The problem of sequences that cannot be split over ``tensor`` ranks, as sequence parallel requires.

    Args:
        latents: number of positions that blocks see, if it is not the length of a sample.
    """
    if family.tensor is not None and not family.tensor.sequence_parallel:
        why = f"needs a family file, since the plan that transformers has for {family.title} splits whole sequences"
        return [Problem("plan.sequence_parallel", why, "set it to false", True)]
    length, key = recipe.length, recipe.length_key
    if latents is not None:
        length, key = latents, f"model.config.{family.stacks[0].latents}"
    if length is None or length % tensor == 0:
        return []
    nearest = max(length // tensor, 1) * tensor
    why = f"splits sequences over {tensor} ranks, but {key}={length} is not a multiple of {tensor}"
    return [Problem("plan.sequence_parallel", why, f"use {key}={nearest}, or plan.sequence_parallel=false", True)]


def _obstacles(plan: TensorPlan, config: Any, tensor: int) -> list[str]:
    found = []
    for field, unit in plan.splits:
        size = getattr(config, field)
        if size is not None and size % (unit * tensor):
            units = f", in groups of {unit}," if unit > 1 else ""
            found.append(f"{field}={size}{units} does not divide over {tensor} ranks")
    found += [f"{what} ({size}) do not divide over {tensor} ranks" for what, size in plan.sizes if size % tensor]
    field = plan.key_value_heads
    if field is not None:
        heads = getattr(config, field)
        if heads != 1 and heads % tensor:
            found.append(f"{field}={heads} does not divide over {tensor} ranks")
    return found


def _fix(plan: TensorPlan, config: Any, tensor: int) -> str:
    able = [ranks for ranks in range(1, min(LARGEST, 4 * tensor) + 1) if not _obstacles(plan, config, ranks)]
    shown = ", ".join(str(ranks) for ranks in able)
    return f"use one of {shown}" if len(able) > 1 else "use 1"
