"""Choose the training strategy (plain torch, pipeline or DeepSpeed) that implements a parallelism plan."""

from __future__ import annotations

from ..models.family import ModelFamily
from .mesh import Mesh
from .plan import Plan
from .recipe_values import RecipeValues
from .strategy import Strategy


def build_strategy(plan: Plan, mesh: Mesh, family: ModelFamily, recipe: RecipeValues) -> Strategy:
    """The strategy of ``plan``. The modules of other strategies are not imported."""
    if plan.uses_deepspeed:
        from .zero.deepspeed_json import deepspeed_config
        from .zero.zero_strategy import DeepSpeedStrategy

        config, _ = deepspeed_config(plan, recipe, mesh.data_size)  # its problems are reported before launch
        return DeepSpeedStrategy(plan, mesh, family, config)
    if mesh.degrees.pipeline > 1:
        from .pipeline.pipeline_strategy import PipelineStrategy

        return PipelineStrategy(plan, mesh, family)
    from .torch_strategy import TorchStrategy

    return TorchStrategy(plan, mesh, family)
