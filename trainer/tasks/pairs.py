"""Loss and metrics of pairs, each of whose halves must be found among those of all pairs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pair_losses(one: Tensor, other: Tensor, scale: Tensor, paired: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the pairs of the symmetric cross-entropy (InfoNCE), and the logits.

    Args:
        one: [pairs, size], features of unit length.
        other: [pairs, size], likewise.
        scale: inverse temperature.
        paired: [pairs], false for rows that only fill a place: they are no candidates.
    """
    logits = scale.float() * one.float() @ other.float().T
    return _loss(logits, paired), logits


def scale_of(logits: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """The inverse temperature of ``logits`` = scale x one x other, with its gradient.

    It is read from the outputs because the parameter itself is gathered inside of the model's forward pass only, under
    plans that shard it.
    """
    products = one.float() @ other.float().T  # with its gradient, so that features have none by the scale
    return (logits.float() * products).sum() / (products**2).sum()


def pair_sums(logits: Tensor, paired: Tensor) -> dict[str, Tensor]:
    """Sums of a micro-batch with the given logits [pairs, pairs]."""
    logits = logits.float().masked_fill(~paired, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return {
        "loss": _loss(logits, paired),
        "found": ((logits.argmax(1) == own) & paired).sum(),
        "labels": paired.sum(),
    }


def _loss(logits: Tensor, paired: Tensor) -> Tensor:
    there = paired.nonzero().squeeze(1)
    logits = logits[there][:, there]
    own = torch.arange(len(there), device=logits.device)
    return (F.cross_entropy(logits, own, reduction="sum") + F.cross_entropy(logits.T, own, reduction="sum")) / 2
