"""Freeze the running statistics of BatchNorm layers during training, as ``model.frozen_batchnorm`` asks. Without this
key, a model with BatchNorm is refused.

Ordinary BatchNorm normalises by the mean and variance of the current micro-batch, so its results depend on the
micro-batch size and on the parallelism plan. With frozen statistics the result for a sample depends on this sample
alone. The statistics are those of the loaded weights; a randomly initialised model has mean 0 and variance 1. Scale and
shift are still trained.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import nn

from ..errors import Problem, UserError

FIELD = "model.frozen_batchnorm"
KINDS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def fix_statistics(model: nn.Module, frozen: bool) -> None:
    """Fix the statistics of every BatchNorm of ``model``, in place.

    Args:
        frozen: whether the recipe asks for it.

    Raises:
        UserError: ``model`` has a BatchNorm, and the recipe does not ask for it.
    """
    norms = [(name, module) for name, module in model.named_modules() if isinstance(module, KINDS)]
    if norms and not frozen:
        why = f"is false, and {len(norms)} BatchNorms, such as {norms[0][0]}, would normalise by the samples of one "
        why += "micro-batch: the result would depend on the plan"
        fix = f"set {FIELD}=true, which normalises by the statistics of the weights, or take a model without BatchNorm"
        raise UserError(Problem(FIELD, why, fix, frozen))
    for _, module in norms:
        module.__class__ = _with_fixed_statistics(type(module))
        module.train()


@cache
def _with_fixed_statistics(kind: type[nn.Module]) -> Any:
    """``kind`` that stays in evaluation mode."""

    def train(self: nn.Module, mode: bool = True) -> nn.Module:
        return kind.train(self, False)

    return type(f"Fixed{kind.__name__}", (kind,), {"train": train, "__module__": __name__})
