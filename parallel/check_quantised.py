"""Check that a parallelism plan supports quantised weights or quantisation-aware training, without importing torch."""

from __future__ import annotations

from ..errors import Problem
from ..models.quantization.qat_config import QatConfig
from ..models.quantization.quantization_config import QuantizationConfig
from .plan import Degrees, Plan


def check_quantised(
    plan: Plan, degrees: Degrees, config: QuantizationConfig | None, qat: QatConfig | None = None
) -> list[Problem]:
    """Problems that keep ``plan`` from spreading a quantised base, or a model under quantisation-aware training."""
    if degrees.tensor > 1 and qat is not None:
        why = "splits layers, and rounding needs whole rows of a weight"
        fix = "use a plan that keeps layers whole (ddp, fsdp_full_shard, pp_1f1b), or leave model.qat out"
        return [Problem("plan.tensor", why, fix, degrees.tensor)]
    if config is None:
        return []
    problems = []
    if config.on_cpu and (degrees.world_size > 1 or plan.data_parallel != "ddp"):
        why = f"keeps modules on the CPU beside one GPU, and plan {plan.name} spreads or moves them itself"
        fix = "use plan=single, or leave it out: plan=fsdp_offload keeps every shard in the memory of the CPU"
        problems.append(Problem("model.quantization.on_cpu", why, fix, config.on_cpu))
    if degrees.tensor > 1:
        why = "splits layers, and the groups of a quantised layer do not end where ranks do"
        fix = "use a plan that keeps layers whole (ddp, fsdp_full_shard, pp_1f1b), or leave model.quantization out"
        problems.append(Problem("plan.tensor", why, fix, degrees.tensor))
    return problems
