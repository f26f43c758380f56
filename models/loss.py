"""The loss of a causal language model, as a sum: only the strategy knows the label tokens of the global batch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Label of positions that do not count, as everywhere in the field."""


def next_token_labels(labels: Tensor) -> Tensor:
    """Align labels with the positions that predict them.

    Args:
        labels: [batch, length], aligned with the inputs.

    Returns:
        [batch, length]: position t holds the label of token t + 1, the last position ``IGNORE``. Shifting the labels
        (not the logits) avoids a copy of the logits.
    """
    return F.pad(labels[:, 1:], (0, 1), value=IGNORE)


def causal_lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum of next-token cross-entropies in nats, in fp32 whatever the logits' type.

    Args:
        logits: [batch, length, vocabulary]. A DTensor that is split over the vocabulary needs torch's ``loss_parallel``
            around forward and backward; it is never gathered.
        labels: [batch, length], aligned with the inputs; ``IGNORE`` does not count.
    """
    targets = next_token_labels(labels)
    loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum")
    return _local(loss)


def most_likely(logits: Tensor) -> Tensor:
    """[batch, length]: the token with the largest logit. Of logits that are split over the vocabulary, ranks exchange
    the best of each part only."""
    tokens = logits.argmax(-1)
    return _local(tokens)


def _local(tensor: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor  # a second of importing, which checking a recipe goes without

    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
