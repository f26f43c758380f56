"""Masked language modelling task for image captions: predict masked caption tokens while the model sees the image."""

from __future__ import annotations

from .masked_lm import MaskedLM


class MaskedCaptions(MaskedLM):
    """Loss in nats per masked token; metrics: loss, perplexity, accuracy."""

    samples = "trireme.trainer.data.image_text_rows.CaptionedImages"
    collator = "trireme.trainer.data.masked_caption_collator.MaskedCaptionCollator"
