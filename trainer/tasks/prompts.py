"""Beginnings of texts that a decoder goes on writing."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.loss import IGNORE


def beginnings(tokens: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The tokens before the first label of each sample, behind padding that the mask hides.

    Args:
        tokens: [samples, length].
        labels: [samples, length], each at the position that predicts it.

    Returns:
        ``input_ids`` and ``attention_mask``, [samples, longest beginning]; a sample without labels gives one token.
    """
    ends = (labels != IGNORE).int().argmax(1) + 1
    longest = int(ends.max())
    places = torch.arange(longest, device=tokens.device) - (longest - ends)[:, None]  # below 0 in the padding
    return {"input_ids": tokens.gather(1, places.clamp(min=0)), "attention_mask": (places >= 0).long()}
