"""Vision-language chat task: predict the next tokens of the answers in conversations that contain images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from .causal_lm import CausalLM

if TYPE_CHECKING:
    from ...models.facts import Facts

BESIDE = ("token_type_ids", "mm_token_type_ids")
"""Inputs that tell for each token whether it belongs to an image or an audio clip."""


class ImageChat(CausalLM):
    """Loss in nats per token of the answers; metrics: loss, perplexity, accuracy."""

    head = "image_text_to_text"
    chats = True
    samples = "trireme.trainer.data.chat.media_chat_rows.ImageChats"
    collator = "trireme.trainer.data.media_collator.MediaCollator"
    placeholders: tuple[int, ...] = ()
    """Ids of the placeholder tokens of images and audio clips."""

    def configure(self, processor: Any, facts: Facts) -> None:
        from ..data.chat.media_encoder import kinds_of, token_id

        super().configure(processor, facts)
        self.placeholders = tuple(token_id(processor, kind) for kind in kinds_of(processor))

    def prompt(self, inputs: dict[str, Any], targets: dict[str, Any]) -> dict[str, Any]:
        """The beginnings of conversations, with their images and audio clips.

        Raises:
            UserError: an image or audio clip stands behind the first label.
        """
        import torch

        from ...models.loss import IGNORE
        from .prompts import beginnings

        tokens, mask = inputs["input_ids"], inputs["attention_mask"]
        labels = targets["labels"].clone()
        # A row that only fills a place has no label; it is kept whole, since its images are among the inputs too.
        (fillers,) = torch.where((labels == IGNORE).all(1))
        labels[fillers, mask[fillers].sum(1) - 1] = 0
        found = beginnings(tokens, labels, mask)
        marked = torch.tensor(self.placeholders, device=tokens.device)
        if torch.isin(found["input_ids"], marked).sum() != torch.isin(tokens, marked).sum():
            why = "writes the first answer that is learnt, and images or audio clips stand behind it"
            raise UserError(Problem("generation", why, "set data.chat.loss=last, or leave the part generation out"))
        beside = {name: beginnings(inputs[name], labels, mask)["input_ids"] for name in BESIDE if name in inputs}
        return {**inputs, **found, **beside}
