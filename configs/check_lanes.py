"""Check recipes with ``data.packing=lanes``, for models that carry a memory from one sample of a text to the next.

All documents form one text, which is cut into contiguous stretches (lanes), one for each sample of a step. Models such
as Transformer-XL carry a memory along a lane. Model, task and plan must support this.
"""

from __future__ import annotations

from ..errors import Problem
from ..models.family import families
from ..models.model_config import ModelConfig
from ..parallel.plan import Plan
from ..trainer.component import Component, locate
from ..trainer.data.data_config import DataConfig
from ..trainer.tasks.task import head_of, learns_from_rows, own_steps_of

KEY, LANES = "data.packing", "lanes"


def check_lanes(data: DataConfig, model: ModelConfig, task: Component, plan: Plan) -> list[Problem]:
    """Problems of the model, task and plan of a recipe with ``data.packing=lanes``."""
    if data.packing != LANES:
        return []
    problems = []
    if head_of(task) != "causal_lm" or learns_from_rows(task) or _coupled(task):
        why = "joins all documents into one text, but this task learns from separate samples"
        problems.append(Problem(KEY, why, "set task=causal_lm, or data.packing=false", LANES))
    elif steps := sorted(own_steps_of(task)):
        own = ", ".join(steps)
        why = f"needs the trainer to pass the memory to the model, but this task calls the model itself ({own})"
        problems.append(Problem(KEY, why, "give the task only loss and evaluate, or set data.packing=true", LANES))
    if not model.spec.carried:
        able = ", ".join(name for name, family in families().items() if family.carried)
        why = f"is for models that carry a memory from sample to sample, but {model.spec.title} has no memory"
        problems.append(Problem(KEY, why, f"set data.packing=true, or model.family to one of {able}", LANES))
    if plan.pipeline != 1:
        why = f"needs ranks with the whole model, but plan {plan.name} cuts the model into pipeline stages"
        problems.append(Problem(KEY, why, "choose a plan without pipeline, such as ddp or fsdp_full_shard", LANES))
    return problems


def _coupled(task: Component) -> bool:
    try:
        return bool(getattr(locate(task["_target_"]), "coupled", False))
    except Exception:  # reported by the check of components
        return False
