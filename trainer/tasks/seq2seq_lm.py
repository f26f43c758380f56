"""Sequence-to-sequence task: generate one text from another, such as a translation, a summary or an answer."""

from __future__ import annotations

from typing import Any

from .causal_lm import CausalLM
from .task import Task


class Seq2SeqLM(CausalLM):
    """Loss in nats per token of the target; metrics: loss, perplexity, accuracy, and the scores of
    ``generation.scores``."""

    head = "seq2seq_lm"
    writes = True
    samples = "trireme.trainer.data.text_pair_rows.TextPairs"
    collator = "trireme.trainer.data.seq2seq_collator.Seq2SeqCollator"

    def prompt(self, inputs: dict[str, Any], targets: dict[str, Any]) -> dict[str, Any]:
        return Task.prompt(self, inputs, targets)
