"""Image-to-text task: generate a text for an image, such as a caption, the handwriting it shows, or a table."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from .seq2seq_lm import Seq2SeqLM
from .task import Sums

if TYPE_CHECKING:
    from torch import Tensor


class ImageToText(Seq2SeqLM):
    """Loss in nats per token of the text; metrics: loss, perplexity, accuracy, and the scores of
    ``generation.scores``."""

    head = "image_text_to_text"
    samples = "trireme.trainer.data.image_text_rows.WrittenCaptions"
    collator = "trireme.trainer.data.caption_collator.CaptionCollator"

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        return super().loss(_of_the_text(outputs, targets), targets)

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        return super().evaluate(_of_the_text(outputs, targets), targets)

    def records(self, outputs: Any, targets: dict[str, Any]) -> dict[str, Any]:
        return super().records(_of_the_text(outputs, targets), targets)

    def prompt(self, inputs: dict[str, Any], targets: dict[str, Any]) -> dict[str, Any]:
        """The image, and only the start token of the text."""
        first = {
            name: inputs[name][:, :1]
            for name in ("input_ids", "attention_mask", "image_attention_mask")
            if "input_ids" in inputs and name in inputs
        }
        return {**super().prompt(inputs, targets), **first}


def _of_the_text(outputs: Any, targets: dict[str, Any]) -> Any:
    """The logits of the text, before which some models give those of the image's patches."""
    return SimpleNamespace(logits=outputs.logits[:, -targets["labels"].shape[1] :])
