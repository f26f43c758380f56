"""Loss and metrics of contrastive tasks (CLIP, CLAP): each image or audio clip is matched with all captions of a batch.

The reverse direction counts too: each caption is matched against all images or audio clips.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BIAS = 1e-3
"""Share of the logits (root mean square) that no scale of the products explains, where a bias is added. It changes no
softmax."""


def pair_losses(
    one: Tensor, other: Tensor, scale: Tensor, paired: Tensor, other_scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Sum over the pairs of the symmetric cross-entropy (InfoNCE), and the logits.

    Args:
        one: [pairs, size], features of unit length.
        other: [pairs, size], likewise.
        scale: inverse temperature.
        paired: [pairs], false for rows that only fill a place: they are no candidates.
        other_scale: inverse temperature of finding ``one`` for ``other``; None if it is ``scale``.
    """
    logits = scale.float() * one.float() @ other.float().T
    back = None if other_scale is None else other_scale.float() * other.float() @ one.float().T
    return _loss(logits, paired, back), logits


def scale_sums(logits: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Sums over each row of a micro-batch's logits, [rows, 6], by which ``scale_of`` finds the inverse temperature of
    all micro-batches together: their number; of logits, of products, of their squares, and of both multiplied.

    The scale is read from the outputs because the parameter itself is gathered inside of the model's forward pass only,
    under plans that shard it. One micro-batch is not enough for that: of a single pair whose features are almost
    orthogonal, the product is little more than its rounding error, and a bias cannot be told from a scale.
    """
    logits = logits.double()
    products = (one.float() @ other.float().T).double()  # with its gradient, so that features have none by the scale
    parts = torch.ones_like(logits), logits, products, logits**2, logits * products, products**2
    return torch.stack([part.sum(1) for part in parts], 1)


def scale_of(sums: Tensor) -> Tensor:
    """The inverse temperature: logits = scale x products (+ a bias, as SigLIP has), with its gradient.

    Args:
        sums: ``scale_sums`` of all rows, [pairs, 6].
    """
    count, logits, products, logits_squared, mixed, products_squared = sums.sum(0)
    scale = mixed / products_squared
    unexplained = (logits_squared - scale * mixed).detach()
    spread = products_squared - products**2 / count
    if unexplained > BIAS**2 * logits_squared and spread > 1e-12 * products_squared:
        scale = (mixed - logits * products / count) / spread
    return scale.float()


def pair_sums(logits: Tensor, paired: Tensor, back: Tensor | None = None) -> dict[str, Tensor]:
    """Sums of a micro-batch with the given logits [pairs, pairs], and those of the way back, if they differ."""
    logits = logits.float().masked_fill(~paired, -torch.inf)
    own = torch.arange(len(logits), device=logits.device)
    return {
        "loss": _loss(logits, paired, back),
        "found": ((logits.argmax(1) == own) & paired).sum(),
        "labels": paired.sum(),
    }


def _loss(logits: Tensor, paired: Tensor, back: Tensor | None = None) -> Tensor:
    there = paired.nonzero().squeeze(1)
    logits = logits[there][:, there]
    back = logits.T if back is None else back.float()[there][:, there]
    own = torch.arange(len(there), device=logits.device)
    return (F.cross_entropy(logits, own, reduction="sum") + F.cross_entropy(back, own, reduction="sum")) / 2
