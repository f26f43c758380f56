"""Object detection task: predict box and class of each object in an image (DETR, https://arxiv.org/abs/2005.12872)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .task import Sums, Task

if TYPE_CHECKING:
    from torch import Tensor


class ObjectDetection(Task):
    """Loss per image: cross-entropy of the classes, L1 distance of the boxes and their generalised IoU, each a mean
    over the image; metrics: loss, and class accuracy and overlap (iou) of the matched boxes.

    Every labelled box is matched with one of the model's queries, at the least total cost. The target of all other
    queries is the class "no object".
    """

    head = "object_detection"
    samples = "trireme.trainer.data.boxed_images.BoxedImages"
    collator = "trireme.trainer.data.boxed_images.BoxCollator"
    metric_names = ("loss", "accuracy", "iou")
    texts = False
    loss_unit = "per image"

    def __init__(
        self, class_weight: float = 1.0, box_weight: float = 5.0, overlap_weight: float = 2.0, nothing: float = 0.1
    ) -> None:
        """
        Args:
            class_weight: weight of the classes in the loss, and in the cost by which boxes are assigned.
            box_weight: weight of the distance of boxes.
            overlap_weight: weight of their generalised overlap.
            nothing: weight of the queries that are to find nothing.
        """
        self.weights, self.nothing = (class_weight, box_weight, overlap_weight), nothing

    def count(self, targets: dict[str, Any]) -> int:
        return int(targets["real_images"].sum())

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        from .boxes import image_losses

        return image_losses(outputs.logits, outputs.pred_boxes, targets, self.weights, self.nothing)["loss"]

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        from .boxes import image_losses

        sums = image_losses(outputs.logits, outputs.pred_boxes, targets, self.weights, self.nothing)
        return {**sums, "labels": targets["real_images"].sum()}

    def metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        boxes = max(sums["boxes"], 1.0)
        loss = sums["loss"] / max(sums["labels"], 1.0)
        return {"loss": loss, "accuracy": sums["right"] / boxes, "iou": sums["overlap"] / boxes}
