"""Masked language modelling task: predict the masked tokens of a text, as in BERT."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .causal_lm import CausalLM
from .task import Sums

if TYPE_CHECKING:
    from torch import Tensor


class MaskedLM(CausalLM):
    """Loss in nats per masked token; metrics: loss, perplexity, accuracy. The labels stand at the masked tokens."""

    head = "masked_lm"
    collator = "trireme.trainer.data.masked_lm_collator.MaskedLMCollator"
    masks = True
    """Its collator needs a mask token, which ``trireme check`` looks for."""

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        return super().loss(_of_tokens(outputs), targets)

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        return super().evaluate(_of_tokens(outputs), targets)

    def records(self, outputs: Any, targets: dict[str, Any]) -> dict[str, Any]:
        return super().records(_of_tokens(outputs), targets)


def _of_tokens(outputs: Any) -> Any:
    """Outputs with the logits of the tokens, which classes with several heads call otherwise."""
    if getattr(outputs, "prediction_logits", None) is None:
        return outputs
    return SimpleNamespace(logits=outputs.prediction_logits)
