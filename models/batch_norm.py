"""BatchNorm with fixed statistics.

BatchNorm normalises by the mean and variance of what one forward pass happens to see, so its results depend on the
micro-batch size and on the plan. With fixed statistics (those of the weights; mean 0 and variance 1 for random ones) a
sample's result depends on the sample alone. Scale and shift are trained as ever.
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
