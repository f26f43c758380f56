"""Preference task with the loss of identity preference optimisation (IPO, https://arxiv.org/abs/2310.12036)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .paired import Paired
from .preference import Answers

if TYPE_CHECKING:
    from torch import Tensor


class IPO(Paired):
    """The loss of a pair is ``(chosen - rejected - 1 / (2 beta))^2`` (equation 17, where beta is called tau).

    Both are log(policy / reference) of an answer per token of it: the authors have confirmed that the paper's results
    are those of averages, and TRL computes them too.
    """

    def pair_losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        wanted, other = (side.ratios / side.lengths.clamp(min=1) for side in (chosen, rejected))
        return (wanted - other - 1 / (2 * self.beta)) ** 2
