"""Preference task with the loss of identity preference optimisation (IPO, https://arxiv.org/abs/2310.12036)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .paired import Paired
from .preference import Answers

if TYPE_CHECKING:
    from torch import Tensor


class IPO(Paired):
    """The loss of a pair is ``(chosen - rejected - 1 / (2 beta))^2`` (equation 17, where beta is called tau).

    ``chosen`` and ``rejected`` are the mean over the answer's tokens of log(policy / reference). The equation has sums;
    the authors have confirmed that their results come from means, which TRL uses too.
    """

    def pair_losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        wanted, other = (side.ratios / side.lengths.clamp(min=1) for side in (chosen, rejected))
        return (wanted - other - 1 / (2 * self.beta)) ** 2
