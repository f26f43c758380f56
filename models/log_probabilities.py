"""Log-probabilities of tokens and of whole texts in rows of tokens, for losses that compare texts.

All tasks that compare texts take them from here, so that there is one place that reads logits.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .loss import IGNORE


def token_log_probabilities(logits: Tensor, labels: Tensor) -> Tensor:
    """[rows, length]: log-probability of each label in nats (fp32), and 0 where there is none.

    Args:
        logits: [rows, length, vocabulary]. A DTensor that is split over the vocabulary is never gathered; it needs
            torch's ``loss_parallel`` around forward and backward.
        labels: [rows, length], each at the position that predicts it; ``IGNORE`` where there is none.
    """
    found = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="none")
    from torch.distributed.tensor import DTensor  # imported here because it takes a second, which a check need not pay

    return -(found.to_local() if isinstance(found, DTensor) else found).view(labels.shape)


def text_sums(values: Tensor, labels: Tensor, texts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sums of a number of each label over the texts of each row, and the labels of each text: both [rows, count].

    Args:
        values: [rows, length], 0 where there is no label.
        labels: [rows, length], ``IGNORE`` where there is none.
        texts: [rows, length], number in its row of the text that each token belongs to; any where there is no label.
        count: texts of a row.
    """
    there = labels != IGNORE
    places = texts.where(there, 0)
    zeros = values.new_zeros(len(values), count)
    return zeros.scatter_add(1, places, values), zeros.scatter_add(1, places, there.to(values.dtype))
