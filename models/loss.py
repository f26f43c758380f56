"""Compute the cross-entropy and log-probabilities of labels, and the likeliest tokens, for tasks that predict tokens.

The loss is a sum over labels. The training strategy divides it, because only the strategy knows the number of labels in
the global batch. The functions also accept a head's losses in place of logits (``head_output.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from .head_output import HeadOutput

IGNORE = -100
"""Label of positions that the loss skips, as in torch and transformers."""


def next_token_labels(labels: Tensor) -> Tensor:
    """Align labels with the positions that predict them.

    Args:
        labels: [batch, length], aligned with the inputs.

    Returns:
        [batch, length]: position t holds the label of token t + 1, and the last position holds ``IGNORE``. Labels are
        shifted because shifting the logits would copy them.
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


def token_loss(
    logits: Tensor, labels: Tensor, smoothing: float = 0.0, z_loss: float = 0.0, weights: Tensor | None = None
) -> Tensor:
    """Sum of the labels' cross-entropies in nats, computed in fp32 for logits of any type.

    Args:
        logits: [batch, length, vocabulary]. A DTensor that is split over the vocabulary is never gathered; it needs
            torch's ``loss_parallel`` around forward and backward.
        labels: [batch, length], each at the position that predicts it; positions labelled ``IGNORE`` are skipped.
        smoothing: share of the target that is spread evenly over the vocabulary (https://arxiv.org/abs/1512.00567).
        z_loss: factor of the square of log sum exp of a position's logits, which keeps logits small
            (https://arxiv.org/abs/2204.02311, section 5).
        weights: [batch, length], factors of the losses; None for 1.
    """
    from .head_output import HeadOutput

    if isinstance(logits, HeadOutput):
        return _losses_of_head(logits, labels, (smoothing, z_loss)).sum()
    logits, labels = logits.float().flatten(0, 1), labels.flatten()
    counted = labels != IGNORE
    if z_loss or weights is not None:
        losses = _losses(logits, labels, z_loss)
        factors = 1.0 if weights is None else weights.flatten().float()
        return ((losses + smoothing * _above_mean(logits, labels)) * factors).where(counted, 0.0).sum()
    loss = _local(F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum"))
    return loss + smoothing * _above_mean(logits, labels).where(counted, 0.0).sum() if smoothing else loss


def token_log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label [batch, length] (fp32), with gradient; 0 at positions labelled ``IGNORE``.

    Args:
        logits: [batch, length, vocabulary], also split over tensor ranks, or a ``HeadOutput`` in their place.
        labels: [batch, length], each at the position that predicts it.
    """
    from .head_output import HeadOutput

    if isinstance(logits, HeadOutput):
        return -_losses_of_head(logits, labels, (0.0, 0.0))
    losses = _losses(logits.float().flatten(0, 1), labels.flatten(), 0.0)
    return -losses.view_as(labels).where(labels != IGNORE, 0.0)


def _losses(logits: Tensor, labels: Tensor, z_loss: float) -> Tensor:
    """Loss of each position [positions]; that of positions labelled ``IGNORE`` has no meaning.

    Args:
        logits: [positions, vocabulary].
        labels: [positions].
    """
    from .split_logits import log_sum_exp, own_logits

    if not z_loss and _local(logits) is logits:  # half of the time of the reductions below, which split logits need
        return F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="none")
    log_z = log_sum_exp(logits)
    return log_z - own_logits(logits, labels) + z_loss * log_z.square()


def _above_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Logit of each label - mean of all logits [positions]: what smoothing adds to the cross-entropy, since the mean of
    -log p over the vocabulary is -log p of the label plus this difference.

    Args:
        logits: [positions, vocabulary].
        labels: [positions].
    """
    from .split_logits import mean_logits, own_logits

    return own_logits(logits, labels) - mean_logits(logits)


def _losses_of_head(output: HeadOutput, labels: Tensor, extras: tuple[float, float]) -> Tensor:
    """The losses that a head has computed [batch, length]; 0 at positions labelled ``IGNORE``.

    Raises:
        UserError: they were computed with another smoothing, z-loss or shape.
    """
    from .head_output import no_logits

    if output.extras != extras or output.shape[:2] != labels.shape:
        given, wanted = (tuple(output.shape[:2]), output.extras), (tuple(labels.shape), extras)
        raise no_logits(f"the task asks for {wanted} (shape, (smoothing, z-loss)), but the head computed {given}")
    return output.losses.where(labels != IGNORE, 0.0)


def most_likely(logits: Tensor) -> Tensor:
    """[batch, length]: the token with the largest logit at each position, the first of equals. A ``HeadOutput`` has it
    only where there is a label.

    If logits are split over the vocabulary, ranks exchange only the best token of each part.
    """
    from .head_output import HeadOutput

    if isinstance(logits, HeadOutput):
        return logits.tokens
    if _local(logits) is logits:
        return logits.max(-1).indices  # equal to argmax; on CPUs it takes a quarter of the time
    return _local(logits.argmax(logits.dim() - 1))  # torch 2.13 fails for -1 if split logits are of one sample


def _local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor  # imported here because it takes a second, which a check need not pay

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
