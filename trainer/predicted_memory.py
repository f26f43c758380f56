"""Predict a run's memory by category, and the bytes that a rank sends per step, by the formulas behind ``plan=auto``.

The run report compares these with measured values. The formulas cover only models whose inputs are tokens.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from ..parallel.memory import Step, estimate, keeps_scores, model_sizes, state_bytes
from ..parallel.planner import Candidate, Machine, traffic_bytes

if TYPE_CHECKING:
    from .loop import Trainer


def predicted_memory(trainer: Trainer) -> dict[str, Any] | None:
    """``memory``: bytes by part on the rank that needs most; ``sent``: bytes that a rank sends in a step."""
    if trainer.corpus.unit != "tokens" or trainer.corpus.length is None:
        return None
    recipe, mesh = trainer.recipe, trainer.mesh
    settings, plan, degrees = recipe.trainer, recipe.plan, mesh.degrees
    sizes = model_sizes(trainer.blueprint, trainer.strategy.family)
    step = Step(
        micro_batch=settings.micro_batch_size,
        length=trainer.corpus.length,
        micro_batches=max(settings.global_batch_size // (settings.micro_batch_size * degrees.data), 1),
        state_bytes=state_bytes(recipe.optimizer, recipe.ema is not None),
        eager=keeps_scores(recipe.model.kernel, sizes, mesh.device.type != "cpu"),
        loss=recipe.model.loss,
    )
    memory = asdict(estimate(plan, degrees, sizes, step))
    machine = Machine(mesh.world_size, mesh.world_size, 0, 0)  # only the sum counts, wherever ranks are
    sent = sum(traffic_bytes(Candidate(plan, degrees, {}, 0), sizes, step, machine)) if mesh.world_size > 1 else 0.0
    return {"memory": {name: round(size) for name, size in memory.items()}, "sent": round(sent)}
