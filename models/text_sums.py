"""Sum a value per token over each text of a batch, for losses that compare whole texts. Texts may be packed."""

from __future__ import annotations

from torch import Tensor

from .loss import IGNORE


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
