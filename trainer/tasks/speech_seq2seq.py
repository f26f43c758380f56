"""Speech recognition task with an encoder-decoder: generate the transcript token by token (Whisper,
https://arxiv.org/abs/2212.04356).
"""

from __future__ import annotations

from .seq2seq_lm import Seq2SeqLM


class SpeechSeq2Seq(Seq2SeqLM):
    """Loss in nats per token of the text; metrics: loss, perplexity, accuracy, and the scores of
    ``generation.scores``."""

    head = "speech_seq2seq"
    samples = "trireme.trainer.data.speech_text_rows.WrittenSpeech"
    collator = "trireme.trainer.data.speech_text_collator.SpeechTextCollator"
