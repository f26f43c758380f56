"""The task of next-token prediction. The loss is imported on first use, so that checking a recipe needs no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .task import Sums, Task

if TYPE_CHECKING:
    from torch import Tensor


class CausalLM(Task):
    """Loss in nats per label token; metrics: loss, perplexity, accuracy."""

    head = "causal_lm"
    metric_names = ("loss", "perplexity", "accuracy")

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        from ...models.loss import token_loss

        return token_loss(outputs.logits, targets["labels"])

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        from ...models.loss import IGNORE, most_likely, token_loss

        labels = targets["labels"]
        counted = labels != IGNORE
        return {
            "loss": token_loss(outputs.logits, labels),
            "correct": ((most_likely(outputs.logits) == labels) & counted).sum(),
            "labels": counted.sum(),
        }

    def metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        labels = max(sums["labels"], 1.0)
        loss = sums["loss"] / labels
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": sums["correct"] / labels}
