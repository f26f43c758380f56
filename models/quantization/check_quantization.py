"""Check ``model.quantization`` against what is installed and the types of the plan, before any process starts."""

from __future__ import annotations

import importlib.util

from ...errors import Problem
from .quantization_config import QuantizationConfig


def check_quantization(config: QuantizationConfig | None, precision: str) -> list[Problem]:
    """Problems of a quantised base that are known without its weights.

    Args:
        precision: ``plan.precision``.
    """
    if config is None:
        return []
    problems = []
    if importlib.util.find_spec("bitsandbytes") is None:
        why, fix = "needs the package bitsandbytes, which is not installed", "pip install 'trireme-train[bnb]'"
        problems.append(Problem("model.quantization.method", why, fix, config.method))
    if config.other_dtype not in ("fp32", precision):
        why = f"keeps parameters in another type than products are computed in (plan.precision={precision})"
        fix = f"set plan.precision={config.other_dtype}, or model.quantization.other_dtype=fp32"
        problems.append(Problem("model.quantization.other_dtype", why, fix, config.other_dtype))
    return problems
