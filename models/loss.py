"""The loss of tokens, for every task that predicts them.

It is a sum over labels; the strategy divides it, because only the strategy knows the labels of the global batch.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

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


def token_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Sum of the labels' cross-entropies in nats, computed in fp32 for logits of any type.

    Args:
        logits: [batch, length, vocabulary]. A DTensor that is split over the vocabulary is never gathered; it needs
            torch's ``loss_parallel`` around forward and backward.
        labels: [batch, length], each at the position that predicts it; positions labelled ``IGNORE`` are skipped.
        smoothing: share of the target that is spread evenly over the vocabulary (https://arxiv.org/abs/1512.00567).
    """
    logits, labels = logits.float().flatten(0, 1), labels.flatten()
    loss = _local(F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum"))
    return loss + smoothing * _above_mean(logits, labels) if smoothing else loss


def _above_mean(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the labels of (logit of the label - mean of all logits): what smoothing adds to the cross-entropy, since
    the mean of -log p over the vocabulary is -log p of the label plus this difference. Logits that are split over the
    vocabulary are not gathered: each rank takes its part of both sums.

    Args:
        logits: [positions, vocabulary].
        labels: [positions].
    """
    from torch.distributed.tensor import DTensor, Partial, Replicate

    counted, first, size = labels != IGNORE, 0, logits.shape[-1]
    part = logits
    if isinstance(logits, DTensor):
        part = logits.to_local()
        if logits.placements[0].is_shard():
            first = logits.device_mesh.get_local_rank() * -(-size // logits.device_mesh.size())
    places = labels - first
    here = counted & (places >= 0) & (places < part.shape[-1])
    own = part.gather(1, places.where(here, 0)[:, None])[:, 0]
    difference = own.where(here, 0).sum() - part.sum(1).where(counted, 0).sum() / size
    if part is logits or not logits.placements[0].is_shard():  # type: ignore[attr-defined]
        return difference
    whole = DTensor.from_local(difference, logits.device_mesh, [Partial()])  # type: ignore[attr-defined]
    return whole.redistribute(placements=[Replicate()]).to_local()


def most_likely(logits: Tensor) -> Tensor:
    """[batch, length]: the token with the largest logit at each position.

    If logits are split over the vocabulary, ranks exchange only the best token of each part.
    """
    tokens = logits.argmax(-1)
    return _local(tokens)


def _local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor  # imported here because it takes a second, which a check need not pay

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
