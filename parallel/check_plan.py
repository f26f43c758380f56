"""Check a parallelism plan against the model and the recipe before ranks start, and list the problems found."""

from __future__ import annotations

from typing import Any

from ..errors import Problem
from ..models.family import ModelFamily
from .check_tensor_parallel import check_sequence, check_tensor
from .pipeline.check_pipeline import check_pipeline
from .plan import Degrees, Plan
from .recipe_values import RecipeValues
from .zero.check_deepspeed import check_deepspeed
from .zero.optimizer_rules import name_of, needs_whole_tensors


def check_plan(plan: Plan, degrees: Degrees, family: ModelFamily, config: Any, recipe: RecipeValues) -> list[Problem]:
    """Problems that keep a model from running under ``plan``.

    Args:
        config: the model's transformers configuration.
    """
    micro_batches = max(recipe.global_batch_size // (recipe.micro_batch_size * degrees.data), 1)
    return [
        *check_tensor(family, config, degrees.tensor),
        *(check_sequence(family, degrees.tensor, recipe, family.latents(config)) if plan.sequence_parallel else []),
        *check_pipeline(plan, degrees, family, config, micro_batches),
        *check_deepspeed(plan, recipe, degrees.data),
        *_check_optimizer(plan, degrees, recipe),
    ]


def _check_optimizer(plan: Plan, degrees: Degrees, recipe: RecipeValues) -> list[Problem]:
    """Refuse optimizers that need whole tensors, since they would compute other updates from a shard."""
    name = name_of(recipe.optimizer)
    split = degrees.tensor > 1 or (degrees.shard > 1 and not plan.uses_deepspeed)
    if not (split and needs_whole_tensors(name)):
        return []
    why = f"{name} needs whole tensors, but plan {plan.name} gives each rank a part, which would change its updates"
    return [Problem("optimizer", why, "use optimizer=adamw, or a plan that keeps whole copies (ddp, pp_1f1b)")]
