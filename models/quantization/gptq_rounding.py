"""The GPTQ algorithm: quantise a weight so that the layer's outputs change little on given inputs.

Columns are rounded one after the other. The columns that are not rounded yet are adjusted to compensate for each
rounding error, by the inverse of ``H = X' X`` (https://arxiv.org/abs/2210.17323, algorithm 1). Columns are processed in
portions, so most of the work is matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .gptq_numbers import GptqNumbers

PORTION = 128
"""Columns that are rounded before the rest of the weight is changed."""


@dataclass(frozen=True)
class GptqRounding:
    """Rounds weights by the GPTQ algorithm."""

    form: GptqNumbers
    damping: float = 0.01
    """Share of the mean of H's diagonal that is added to it, so that it can be inverted."""
    by_activity: bool = False
    """Round the columns with the largest inputs first (``desc_act``); groups are then groups of that order."""

    @torch.no_grad()
    def parts(self, weight: Tensor, moments: Tensor) -> dict[str, Tensor]:
        """The stored tensors of a quantised weight: codes, scales, zeros and groups.

        Args:
            weight: [outputs, inputs] in fp32.
            moments: H, the sum of outer products of inputs [inputs, inputs] in fp32.
        """
        inputs = weight.shape[1]
        order = torch.arange(inputs)
        if self.by_activity:
            order = moments.diagonal().argsort(descending=True, stable=True).cpu()
        left, moments = weight[:, order].clone(), moments[order][:, order].clone()
        silent = moments.diagonal() == 0
        left[:, silent] = 0
        codes, scales, zeros = self._rounded(left, self._factor(moments, silent))
        back = order.argsort()
        groups = self.form.usual_groups(inputs)
        return self.form.assemble(codes[back].cpu(), scales.cpu(), zeros.cpu(), groups[back])

    def _factor(self, moments: Tensor, silent: Tensor) -> Tensor:
        """The upper Cholesky factor of the inverse of H, whose diagonal is damped until the inverse exists."""
        diagonal = moments.diagonal()
        diagonal[silent] = 1
        damping = self.damping * diagonal.mean()
        while True:
            diagonal += damping
            factor, failed = torch.linalg.cholesky_ex(moments.double())
            if not failed:
                inverse = torch.cholesky_inverse(factor)
                return torch.linalg.cholesky(inverse, upper=True).to(moments.dtype)

    def _rounded(self, left: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [inputs, outputs], and scales and zeros [groups, outputs], of columns in order; changes ``left``."""
        inputs = left.shape[1]
        size = inputs if self.form.group_size == -1 else self.form.group_size
        codes = torch.empty(inputs, left.shape[0], dtype=torch.int32, device=left.device)
        scales, zeros = [], []
        for start in range(0, inputs, PORTION):
            stop = min(start + PORTION, inputs)
            errors = torch.empty(left.shape[0], stop - start, device=left.device)
            for column in range(start, stop):
                if column % size == 0:
                    if start < column < stop < column + size:  # the grid must fit the columns as they are now
                        left[:, stop:] -= errors[:, : column - start] @ factor[start:column, stop:]
                        errors[:, : column - start] = 0
                    found = self.form.grid(left[:, column : column + size])
                    scales.append(found[0][0])
                    zeros.append(found[1][0])
                value = left[:, column]
                code = self.form.rounded(value, scales[-1], zeros[-1])
                codes[column] = code
                error = (value - (code - zeros[-1]) * scales[-1]) / factor[column, column]
                left[:, column:stop] -= error.unsqueeze(1) * factor[column, column:stop]
                errors[:, column - start] = error
            left[:, stop:] -= errors @ factor[start:stop, stop:]
        return codes, torch.stack(scales), torch.stack(zeros)
