"""Causal language modelling task: predict the next token of a text.

The loss is imported on first use, so that checking a recipe needs no torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from .task import Sums, Task, share_of_labels
from .text_scores import text_metrics

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.facts import Facts
    from ...models.head_loss import Asked


class CausalLM(Task):
    """Loss in nats per label token; metrics: loss, perplexity, accuracy."""

    head = "causal_lm"
    metric_names = ("loss", "perplexity", "accuracy")
    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def __init__(self, label_smoothing: float = 0.0, z_loss: float = 0.0) -> None:
        """
        Args:
            label_smoothing: share of each target that is spread evenly over the vocabulary in training. Evaluations
                measure the plain loss, so that they can be compared.
            z_loss: factor of the square of log sum exp of the logits, which is added to each label's loss in training
                and keeps logits from growing; PaLM has 0.0001.
        """
        self.label_smoothing = share_of_labels(label_smoothing)
        if not 0 <= z_loss < 1:
            raise ValueError(f"z_loss={z_loss} must be a factor from 0 to below 1; 0.0001 is usual")
        self.z_loss = z_loss

    def head_gives_losses(self) -> bool:
        package = __name__.partition(".")[0]
        readers = (getattr(type(self), name) for name in ("ask", "loss", "evaluate", "records"))
        return all(reader.__module__.partition(".")[0] == package for reader in readers)  # others may read logits

    def ask(self, targets: dict[str, Any], training: bool) -> Asked | None:
        from ...models.head_loss import Asked

        if "labels" not in targets:
            return None
        if not training:
            return Asked(targets["labels"], likeliest=True)
        return Asked(targets["labels"], targets.get("weights"), self.label_smoothing, self.z_loss)

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        from ...models.loss import token_loss

        extras = self.label_smoothing, self.z_loss, targets.get("weights")
        return token_loss(outputs.logits, targets["labels"], *extras)

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
        metrics = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "accuracy": sums["correct"] / labels}
        return metrics | text_metrics(sums)

    def prompt(self, inputs: dict[str, Any], targets: dict[str, Any]) -> dict[str, Any]:
        from .prompts import beginnings

        return beginnings(inputs["input_ids"], targets["labels"], inputs.get("attention_mask"))

    def records(self, outputs: Any, targets: dict[str, Any]) -> dict[str, Any]:
        """The likeliest token at each label, and ``IGNORE`` elsewhere: [samples, length]."""
        from ...models.loss import IGNORE, most_likely

        return {"tokens": most_likely(outputs.logits).masked_fill(targets["labels"] == IGNORE, IGNORE)}

    def prediction(self, record: dict[str, Any], facts: Facts, tokenizer: Any) -> dict[str, Any]:
        from ...models.loss import IGNORE

        found = {name: value for name, value in record.items() if name not in ("tokens", "written", "wanted")}
        if "written" in record:
            return {**found, "prediction": record["written"], "wanted": record["wanted"]}
        tokens = [token for token in record["tokens"] if token != IGNORE]
        return {**found, "prediction": tokenizer.decode(tokens, skip_special_tokens=True)}
