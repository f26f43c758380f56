"""Extract the prompt of each text in a batch: the tokens before the first label, from which generation continues."""

from __future__ import annotations

import torch
from torch import Tensor

from ...models.loss import IGNORE


def beginnings(tokens: Tensor, labels: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
    """The tokens before the first label of each sample, behind padding that the mask hides.

    Args:
        tokens: [samples, length].
        labels: [samples, length]; the label at a position is the token that this position predicts. With a smaller
            length, labels belong to the last positions.
        mask: [samples, length], 0 at padding; None if there is none before the first label.

    Returns:
        ``input_ids`` and ``attention_mask``, [samples, longest beginning]; a sample without labels gives one token.
    """
    ends = (labels != IGNORE).int().argmax(1) + 1 + tokens.shape[1] - labels.shape[1]
    longest = int(ends.max())
    places = torch.arange(longest, device=tokens.device) - (longest - ends)[:, None]  # below 0 in the padding
    here, places = places >= 0, places.clamp(min=0)
    real = here if mask is None else here & (mask.gather(1, places) != 0)
    first = int(real.any(0).int().argmax())  # of the columns that are not padding in all rows
    return {"input_ids": tokens.gather(1, places)[:, first:], "attention_mask": real[:, first:].long()}
