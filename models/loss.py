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


def token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of the labels' cross-entropies in nats, computed in fp32 for logits of any type.

    Args:
        logits: [batch, length, vocabulary]. A DTensor that is split over the vocabulary is never gathered; it needs
            torch's ``loss_parallel`` around forward and backward.
        labels: [batch, length], each at the position that predicts it; positions labelled ``IGNORE`` are skipped.
    """
    loss = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
    return _local(loss)


def most_likely(logits: Tensor) -> Tensor:
    """[batch, length]: the token with the largest logit at each position.

    If logits are split over the vocabulary, ranks exchange only the best token of each part.
    """
    tokens = logits.argmax(-1)
    return _local(tokens)


def _local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor  # imported here because it takes a second, which a check need not pay

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
