"""Multimodal chat task: predict the next tokens of the answers in conversations that contain audio, images or both."""

from __future__ import annotations

from .image_chat import ImageChat


class MultimodalChat(ImageChat):
    """Loss in nats per token of the answers; metrics: loss, perplexity, accuracy."""

    head = "multimodal_lm"
    samples = "trireme.trainer.data.chat.media_chat_rows.MultimodalChats"
