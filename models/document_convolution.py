"""Causal convolutions that do not read tokens of earlier documents in a packed sequence of texts.

transformers resets RecurrentGemma's recurrence where positions restart. It does not reset the convolution before the
recurrence, which would read the last tokens of the previous document. Here tokens of other documents count as zero.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .family import ModelFamily


class DocumentConv1d(nn.Conv1d):
    """A causal depthwise convolution, padded on both sides, whose callers take the first ``length`` outputs."""

    positions: Tensor | None = None
    """[batch or 1, length], position of each token in its document; None where rows are single documents."""

    def forward(self, input: Tensor) -> Tensor:
        """[batch, channels, length] -> [batch, channels, length + width - 1], or ``length`` outputs of packed rows."""
        positions, length, width = self.positions, input.shape[-1], self.kernel_size[0]
        if positions is None or not bool((positions[:, 1:] == 0).any()):
            return super().forward(input)
        # One term for each weight, so that what lies beyond the beginning of the document is not read at all.
        bias = 0 if self.bias is None else self.bias[:, None]
        output = input * self.weight[:, 0, width - 1, None] + bias
        for back in range(1, min(width, length)):
            inside = (positions[:, back:] >= back).unsqueeze(1)
            read = torch.where(inside, input[..., : length - back], 0)
            output = output + F.pad(read * self.weight[:, 0, width - 1 - back, None], (back, 0))
        return output.to(input.dtype)


def keep_documents_apart(model: nn.Module, family: ModelFamily) -> None:
    """Give the convolutions that ``family`` names the positions of their tokens."""
    for owner, child in family.convolutions:
        for path, module in model.named_modules():
            convolution = getattr(module, child, None)
            if path.rpartition(".")[2] == owner and type(convolution) is nn.Conv1d:
                convolution.__class__ = DocumentConv1d  # the module keeps its parameters, names and padding
                module.register_forward_pre_hook(_Positions(child), with_kwargs=True)


class _Positions:
    """Tells a convolution the positions that the module around it is called with."""

    def __init__(self, child: str) -> None:
        self.child = child

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        getattr(module, self.child).positions = kwargs.get("position_ids")
