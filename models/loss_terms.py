"""Dataclasses for the cross-entropy of a linear layer over a vocabulary: its settings, and its gradients."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class LogitMap:
    """The map that a model applies to the outputs of its head: ``scale * z``, or ``cap * tanh(scale * z)``."""

    scale: float = 1.0
    cap: float | None = None

    def apply_(self, logits: Tensor) -> Tensor:
        """``logits`` (fp32) mapped in place."""
        if self.scale != 1.0:
            logits.mul_(self.scale)
        return logits if self.cap is None else logits.tanh_().mul_(self.cap)

    def slope_(self, mapped: Tensor) -> Tensor:
        """Derivative of the map, from its results ``mapped`` and in their memory."""
        if self.cap is None:
            return mapped.fill_(self.scale)
        return mapped.div_(self.cap).square_().neg_().add_(1.0).mul_(self.scale * self.cap)


@dataclass(frozen=True)
class Terms:
    """Settings of the loss: the map of the logits, further terms, and how the vocabulary is split over ranks."""

    map: LogitMap = LogitMap()
    smoothing: float = 0.0
    z_loss: float = 0.0
    first: int = 0
    """Index of the first token of this rank's part of the vocabulary."""
    words: int = 0
    """Size of the whole vocabulary; 0 if this rank has all of it."""
    group: dist.ProcessGroup | None = None
    """Ranks that have the other parts of the vocabulary; all have the same tokens."""
    likeliest: bool = False
    """Whether the likeliest next token is found for each token too."""
    fused: bool = False
    """Whether losses and gradients that are computed at once come from Liger's kernels."""


@dataclass
class Wanted:
    """Gradients of the sum of the losses; None for those that are not needed."""

    hidden: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
