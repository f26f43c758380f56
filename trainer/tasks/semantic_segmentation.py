"""Semantic segmentation task: predict a class for every pixel of an image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .task import Sums, Task

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.facts import Facts

NO_CLASS = 255
"""Label of pixels that belong to no class, which the loss ignores."""


class SemanticSegmentation(Task):
    """Loss in nats per pixel; metrics: loss, accuracy of pixels, and mean over classes of intersection by union.

    Logits are brought to the size of the map. Auxiliary heads are not trained: models do not return their outputs.
    """

    head = "semantic_segmentation"
    samples = "trireme.trainer.data.mapped_images.MappedImages"
    collator = "trireme.trainer.data.image_collator.ImageCollator"
    metric_names = ("loss", "accuracy", "mean_iou")
    texts = False
    loss_unit = "nats per pixel"

    def count(self, targets: dict[str, Any]) -> int:
        return int(_there(targets["labels"]).sum())

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        import torch.nn.functional as F

        from ...models.loss import IGNORE

        labels = targets["labels"]
        return F.cross_entropy(
            _logits(outputs, labels), labels.masked_fill(~_there(labels), IGNORE), ignore_index=IGNORE, reduction="sum"
        )

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        import torch

        labels = targets["labels"]
        logits, there = _logits(outputs, labels), _there(labels)
        classes = logits.shape[1]
        pairs = labels[there] * classes + logits.argmax(1)[there]
        table = torch.bincount(pairs, minlength=classes**2).view(classes, classes)
        return {"loss": self.loss(outputs, targets), "labels": there.sum(), "table": table}

    def metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        table, count = sums["table"], max(sums["labels"], 1.0)
        both, union = table.diagonal(), table.sum(0) + table.sum(1) - table.diagonal()
        shares = (both / union.clamp(min=1))[union > 0]
        mean = float(shares.mean()) if len(shares) else 0.0
        return {"loss": sums["loss"] / count, "accuracy": float(both.sum()) / count, "mean_iou": mean}

    def records(self, outputs: Any, targets: dict[str, Any]) -> dict[str, Any]:
        """The likeliest class of each pixel, and the label."""
        return {"map": _logits(outputs, targets["labels"]).argmax(1), "label": targets["labels"]}

    def prediction(self, record: dict[str, Any], facts: Facts, tokenizer: Any) -> dict[str, Any]:
        """Share of each class among the pixels, found and wanted."""
        shares = {}
        for name in ("map", "label"):
            pixels = [pixel for row in record[name] for pixel in row if pixel != NO_CLASS]
            counts = {label: pixels.count(number) for number, label in enumerate(facts.labels)}
            shares[name] = {label: round(count / max(len(pixels), 1), 6) for label, count in counts.items() if count}
        return {"index": record["index"], "prediction": shares["map"], "label": shares["label"]}


def _there(labels: Tensor) -> Tensor:
    """Whether each pixel has a class."""
    return (labels != NO_CLASS) & (labels >= 0)


def _logits(outputs: Any, labels: Tensor) -> Tensor:
    """Logits [images, classes, height, width], resized to the label maps, in fp32."""
    import torch.nn.functional as F

    return F.interpolate(outputs.logits.float(), labels.shape[1:], mode="bilinear", align_corners=False)
