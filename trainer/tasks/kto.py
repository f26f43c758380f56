"""Preference task with the KTO loss, for single answers that are each labelled good or bad.

KTO stands for Kahneman-Tversky optimisation (https://arxiv.org/abs/2402.01306).
"""

from __future__ import annotations

from typing import Any

from .preference import Preference, Source
from .task import Sums


class KTO(Preference):
    """The loss of an answer is ``w (1 - sigmoid(beta (r - z)))`` if it is desirable, else ``w (1 - sigmoid(beta (z -
    r)))``, with r = log(policy / reference) (equation 8).

    z estimates the divergence of the policy from the reference: the mean of r over prompts with answers to other
    prompts, at least 0, and without gradient. It is that of the *global* batch, whatever the plan, and in an
    evaluation that of the whole set. Metrics: loss, kl (z), the share of answers whose reward is on the right side of z
    (accuracy), rewards and log-probabilities of both kinds, and their difference (margin). Metrics of one kind are
    left out where there are no answers of that kind.
    """

    samples = "trireme.trainer.data.preference.preference_rows.Judged"
    collator = "trireme.trainer.data.preference.preference_collator.JudgedCollator"
    loss_unit = "loss per answer"
    estimates = True
    metric_names = (
        *("loss", "accuracy", "margin", "rewards/chosen", "rewards/rejected", "logps/chosen", "logps/rejected", "kl"),
    )
    step_metrics = metric_names[1:]

    def __init__(
        self,
        beta: float = 0.1,
        reference: Source = "start",
        desirable_weight: float = 1.0,
        undesirable_weight: float = 1.0,
    ) -> None:
        """
        Args:
            beta: how strongly the model is held to the reference; greater is stronger.
            reference: what answers are compared with: ``start`` computes log-probabilities of all of them once, before
                training, under the weights that the run begins with; ``adapter_off`` computes them in each step, with
                the adapters of the model switched off.
            desirable_weight: weight of the losses of desirable answers. The paper advises that
                ``desirable_weight x desirable`` be 1 to 4/3 times ``undesirable_weight x undesirable``.
            undesirable_weight: weight of the losses of undesirable answers.
        """
        super().__init__(beta, reference)
        for name, weight in (("desirable_weight", desirable_weight), ("undesirable_weight", undesirable_weight)):
            if weight < 0:
                raise ValueError(f"{name}={weight} must not be below 0; 1 is usual")
        self.desirable_weight, self.undesirable_weight = desirable_weight, undesirable_weight
        self.divergence = 0.0

    def count(self, targets: dict[str, Any]) -> int:
        return int(targets["there"].sum())

    def estimate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        found = self.answers(outputs, targets)
        return {"ratios": found.ratios.sum(), "texts": found.there.sum()}

    def take_estimate(self, sums: dict[str, Any]) -> None:
        self.divergence = max(sums["ratios"] / max(sums["texts"], 1.0), 0.0)

    def measured(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        import torch

        found = self.answers(outputs, targets)
        good, bad = found.there & targets["desirable"], found.there & ~targets["desirable"]
        beyond = self.beta * (found.ratios - self.divergence)
        losses = torch.where(
            targets["desirable"],
            self.desirable_weight * (1 - beyond.sigmoid()),
            self.undesirable_weight * (1 - (-beyond).sigmoid()),
        )
        sums = {
            "loss": losses.where(found.there, 0).sum(),
            "labels": found.there.sum(),
            "accuracy": ((beyond > 0) & good).sum() + ((beyond < 0) & bad).sum(),
        }
        for side, mask in (("chosen", good), ("rejected", bad)):
            sums[f"rewards/{side}"] = (self.beta * found.ratios).where(mask, 0).sum()
            sums[f"logps/{side}"] = found.logps.where(mask, 0).sum()
            sums[side] = mask.sum()
        return sums

    def metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        texts = max(sums["labels"], 1.0)
        there = [side for side in ("chosen", "rejected") if sums[side]]
        names = [(f"{what}/{side}", side) for what in ("rewards", "logps") for side in there]
        means = {name: sums[name] / sums[side] for name, side in names}
        margin = means["rewards/chosen"] - means["rewards/rejected"] if len(there) == 2 else None
        return {
            "loss": sums["loss"] / texts,
            "accuracy": sums["accuracy"] / texts,
            **({} if margin is None else {"margin": margin}),
            **means,
            "kl": self.divergence,
        }

    def records(self, outputs: Any, targets: dict[str, Any]) -> dict[str, Any]:
        """Reward and log-probability of each answer."""
        found = self.answers(outputs, targets)
        return {"reward": (self.beta * found.ratios)[:, 0], "logp": found.logps[:, 0]}
