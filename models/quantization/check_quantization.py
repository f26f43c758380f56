"""Check the recipe's keys ``model.quantization`` and ``model.qat`` before any process starts.

The needed packages must be installed, and the types must fit the precision of the parallelism plan.
"""

from __future__ import annotations

import importlib.util

from ...errors import Problem
from .qat_config import QatConfig
from .quantization_config import QuantizationConfig

EXTRAS = {"bitsandbytes": "bnb", "torchao": "torchao"}
"""Package -> the extra that brings it."""


def check_quantization(config: QuantizationConfig | None, precision: str) -> list[Problem]:
    """Problems of a quantised base that are known without its weights.

    Args:
        precision: ``plan.precision``.
    """
    if config is None:
        return []
    problems = []
    if config.package and importlib.util.find_spec(config.package) is None:
        problems.append(Problem("model.quantization.method", *missing(config.package), config.method))
    if config.other_dtype not in ("fp32", precision):
        why = f"differs from the type that the model computes in (plan.precision={precision})"
        fix = f"set plan.precision={config.other_dtype}, or model.quantization.other_dtype=fp32"
        problems.append(Problem("model.quantization.other_dtype", why, fix, config.other_dtype))
    return problems


def check_qat(config: QatConfig | None) -> list[Problem]:
    """Problems of quantisation-aware training that are known without the model."""
    if config is None or importlib.util.find_spec("torchao") is not None:
        return []
    return [Problem("model.qat.method", *missing("torchao"), config.method)]


def missing(package: str) -> tuple[str, str]:
    """Why a package that is not installed is needed, and what to do."""
    extra = EXTRAS[package]
    return f"needs the package {package}, which is not installed", f"pip install 'trireme-train[{extra}]'"
