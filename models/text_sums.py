"""Sum a value of each token, such as its log-probability, over each text of a row, and count the text's labels. Losses
that compare texts with each other need these sums.
"""

from __future__ import annotations

from torch import Tensor

from .loss import IGNORE


def text_sums(values: Tensor, labels: Tensor, texts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The sum of ``values`` over each text of each row, and the number of labels of each text; both [rows, count].

    Args:
        values: [rows, length], 0 where there is no label.
        labels: [rows, length], ``IGNORE`` where there is none.
        texts: [rows, length], index of each token's text in its row; any number where there is no label.
        count: number of texts in the row that has most.
    """
    there = labels != IGNORE
    places = texts.where(there, 0)
    zeros = values.new_zeros(len(values), count)
    return zeros.scatter_add(1, places, values), zeros.scatter_add(1, places, there.to(values.dtype))
