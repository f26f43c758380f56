"""The task of predicting masked tokens."""

from __future__ import annotations

from .causal_lm import CausalLM


class MaskedLM(CausalLM):
    """Loss in nats per masked token; metrics: loss, perplexity, accuracy. The labels stand at the masked tokens."""

    head = "masked_lm"
    collator = "trireme.trainer.data.masked_lm_collator.MaskedLMCollator"
