"""The task of next-token prediction. The loss is imported on first use, so that checking a recipe needs no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .task import Sums, Task

if TYPE_CHECKING:
    from torch import Tensor

    from ...parallel.strategy import MicroBatch


class CausalLM(Task):
    """Loss in nats per label token; metrics: loss, perplexity, accuracy."""

    head = "causal_lm"
    metric_names = ("loss", "perplexity", "accuracy")

    def loss(self, outputs: Any, batch: MicroBatch) -> Tensor:
        from ...models.loss import causal_lm_loss

        return causal_lm_loss(outputs.logits, batch["labels"])

    def evaluate(self, outputs: Any, batch: MicroBatch) -> Sums:
        from ...models.loss import IGNORE, causal_lm_loss, most_likely, next_token_labels

        targets = next_token_labels(batch["labels"])
        counted = targets != IGNORE
        return {
            "loss": causal_lm_loss(outputs.logits, batch["labels"]),
            "correct": ((most_likely(outputs.logits) == targets) & counted).sum(),
            "labels": counted.sum(),
        }

    def metrics(self, sums: dict[str, float]) -> dict[str, float]:
        labels = max(sums["labels"], 1.0)
        loss = sums["loss"] / labels
        return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": sums["correct"] / labels}
