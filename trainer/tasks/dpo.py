"""Preference task with the loss of direct preference optimisation (DPO, https://arxiv.org/abs/2305.18290)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .paired import Paired
from .preference import Answers, Source

if TYPE_CHECKING:
    from torch import Tensor


class DPO(Paired):
    """The loss of a pair is ``-log sigmoid(beta (chosen - rejected))``, where both are log(policy / reference) of an
    answer (equation 7)."""

    def __init__(
        self,
        beta: float = 0.1,
        reference: Source = "start",
        label_smoothing: float = 0.0,
        length_normalised: bool = False,
        sft: float = 0.0,
    ) -> None:
        """
        Args:
            beta: how strongly the model is held to the reference; greater is stronger.
            reference: what answers are compared with: ``start`` computes log-probabilities of all of them once, before
                training, under the weights that the run begins with; ``adapter_off`` computes them in each step, with
                the adapters of the model switched off.
            label_smoothing: share of the pairs whose sides are thought to be mixed up, below 0.5 (conservative DPO,
                https://ericmitchell.ai/cdpo.pdf). Evaluations measure the same loss.
            length_normalised: divide the log-probabilities of an answer by its tokens
                (https://arxiv.org/abs/2411.15124, section 5.1); ``beta`` is then greater, such as 5.
            sft: weight of a further term, the loss of the chosen answer in nats per token, averaged over the pairs
                (https://arxiv.org/abs/2404.19733).
        """
        super().__init__(beta, reference)
        if not 0 <= label_smoothing < 0.5:
            raise ValueError(f"label_smoothing={label_smoothing} must be from 0 to below 0.5; 0.1 is usual")
        if sft < 0:
            raise ValueError(f"sft={sft} must not be below 0; 1 is usual")
        self.label_smoothing, self.length_normalised, self.sft = label_smoothing, length_normalised, sft

    def pair_losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        from torch.nn.functional import logsigmoid

        wanted, other = chosen.ratios, rejected.ratios
        if self.length_normalised:
            wanted, other = (side.ratios / side.lengths.clamp(min=1) for side in (chosen, rejected))
        margin = self.beta * (wanted - other)
        loss = -(1 - self.label_smoothing) * logsigmoid(margin)
        if self.label_smoothing:
            loss = loss - self.label_smoothing * logsigmoid(-margin)
        if self.sft:
            loss = loss - self.sft * chosen.logps / chosen.lengths.clamp(min=1)
        return loss
