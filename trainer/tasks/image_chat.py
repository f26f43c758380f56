"""Vision-language chat task: predict the next tokens of the answers in conversations that contain images."""

from __future__ import annotations

from .causal_lm import CausalLM


class ImageChat(CausalLM):
    """Loss in nats per token of the answers; metrics: loss, perplexity, accuracy."""

    head = "image_text_to_text"
    chats = True
    samples = "trireme.trainer.data.chat.media_chat_rows.PicturedChats"
    collator = "trireme.trainer.data.media_collator.MediaCollator"
