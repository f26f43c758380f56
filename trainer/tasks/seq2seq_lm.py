"""The task of writing one text for another: translation, summaries, answers."""

from __future__ import annotations

from .causal_lm import CausalLM


class Seq2SeqLM(CausalLM):
    """Loss in nats per token of the target; metrics: loss, perplexity, accuracy."""

    head = "seq2seq_lm"
    samples = "trireme.trainer.data.text_pair_rows.TextPairs"
    collator = "trireme.trainer.data.seq2seq_collator.Seq2SeqCollator"
