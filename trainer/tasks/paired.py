"""The base class of preference losses over pairs of answers (DPO, IPO): a chosen and a rejected answer to one prompt.

The two rows of a pair follow each other in a micro-batch. With packing, each row holds several texts; the texts with
the same number in both rows are a pair.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from .preference import Answers, Preference, named
from .task import Sums

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.facts import Facts


class Paired(Preference):
    """Metrics: loss, the share of pairs whose chosen answer has the higher reward (accuracy), the mean difference of
    rewards (margin), rewards and log-probabilities of both sides. A reward is beta x log(policy / reference)."""

    metric_names = (
        *("loss", "accuracy", "margin", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected"),
    )
    step_metrics = metric_names[1:]

    @abstractmethod
    def pair_losses(self, chosen: Answers, rejected: Answers) -> Tensor:
        """Loss of each pair in nats, [samples, texts]; values where there is no pair are not used."""

    def count(self, targets: dict[str, Any]) -> int:
        return int(targets["there"].sum()) // 2

    def measured(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        chosen, rejected = self._sides(outputs, targets)
        there = chosen.there
        rewards = {"chosen": self.beta * chosen.ratios, "rejected": self.beta * rejected.ratios}
        logps = {"chosen": chosen.logps, "rejected": rejected.logps}
        margins = rewards["chosen"] - rewards["rejected"]
        return {
            "loss": self.pair_losses(chosen, rejected).where(there, 0).sum(),
            "labels": there.sum(),
            "accuracy": ((margins > 0) & there).sum(),
            "margin": margins.sum(),
            **{f"rewards/{side}": value.sum() for side, value in rewards.items()},
            **{f"logps/{side}": value.where(there, 0).sum() for side, value in logps.items()},
        }

    def metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        pairs = max(sums["labels"], 1.0)
        return {name: sums[name] / pairs for name in self.metric_names or ()}

    def records(self, outputs: Any, targets: dict[str, Any]) -> dict[str, Any]:
        """Reward and log-probability of each row."""
        found = self.answers(outputs, targets)
        return {"reward": (self.beta * found.ratios)[:, 0], "logp": found.logps[:, 0]}

    def prediction(self, record: dict[str, Any], facts: Facts, tokenizer: Any) -> dict[str, Any]:
        found = named(record, ("chosen", "rejected"))
        return {**found, "prefers": "chosen" if found["reward_chosen"] > found["reward_rejected"] else "rejected"}

    def _sides(self, outputs: Any, targets: dict[str, Any]) -> tuple[Answers, Answers]:
        found = self.answers(outputs, targets)
        chosen, rejected = zip(*(part.view(-1, 2, part.shape[1]).unbind(1) for part in found), strict=True)
        return Answers(*chosen), Answers(*rejected)
