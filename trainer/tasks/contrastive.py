"""Contrastive task for images and their captions (CLIP, https://arxiv.org/abs/2103.00020)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .task import Sums, Task

if TYPE_CHECKING:
    from torch import Tensor


class Contrastive(Task):
    """Cross-entropy of finding each image's caption, and each caption's image, among those of the global batch.

    The loss is in nats per pair. Metrics: loss, and the share of images whose caption is found (accuracy). In an
    evaluation the candidates are those of a micro-batch, which is the same under every plan.
    """

    head = "features"
    samples = "trireme.trainer.data.image_text_rows.CaptionedImages"
    collator = "trireme.trainer.data.image_text_collator.ImageTextCollator"
    metric_names = ("loss", "accuracy")
    coupled = True

    def count(self, targets: dict[str, Any]) -> int:
        return int(targets["paired"].sum())

    def features(self, outputs: Any) -> dict[str, Tensor]:
        from .contrastive_loss import scale_sums

        image, text = outputs.image_embeds, outputs.text_embeds
        return {"image": image, "text": text, "sums": scale_sums(outputs.logits_per_image, image, text)}

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        from .contrastive_loss import pair_losses, scale_of

        return pair_losses(outputs["image"], outputs["text"], scale_of(outputs["sums"]), targets["paired"])[0]

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        from .contrastive_loss import pair_sums

        return pair_sums(outputs.logits_per_image, targets["paired"])

    def metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        count = max(sums["labels"], 1.0)
        return {"loss": sums["loss"] / count, "accuracy": sums["found"] / count}
