"""Tests of semantic segmentation and object detection: losses, overlaps of boxes, padding, and augmentation.

Padding samples, which only complete a batch, add nothing to the loss, and the order of boxes does not matter.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from trireme.trainer.data.base_collator import without_targets
from trireme.trainer.data.boxed_images import BoxCollator
from trireme.trainer.data.image_collator import NO_CLASS, ImageCollator
from trireme.trainer.tasks.boxes import corners, overlaps
from trireme.trainer.tasks.object_detection import ObjectDetection
from trireme.trainer.tasks.semantic_segmentation import SemanticSegmentation


def test_overlaps_of_boxes() -> None:
    one = corners(torch.tensor([[0.25, 0.25, 0.5, 0.5]]))
    other = corners(torch.tensor([[0.5, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 0.5, 0.5]]))
    share, general = overlaps(one, other)
    assert share.tolist()[0] == pytest.approx([1 / 3, 1, 0])
    assert general.tolist()[0] == pytest.approx([1 / 3, 1, -0.5])


def test_boxes_are_assigned_whatever_their_order() -> None:
    found = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.7, 0.7, 0.2, 0.2], [0.5, 0.5, 0.9, 0.9]]])
    logits = torch.tensor([[[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0]]])
    outputs = SimpleNamespace(logits=logits, pred_boxes=found)
    sample = {"pixel_values": np.zeros((1, 4, 4), np.float32), "index": 0}
    boxes, classes = found[0, :2].numpy(), np.asarray([0, 1])
    losses = []
    for order in ([0, 1], [1, 0]):
        micro = BoxCollator(1).micro_batch([{**sample, "boxes": boxes[order], "classes": classes[order]}])
        sums = ObjectDetection().evaluate(outputs, micro.targets)
        losses.append(float(sums["loss"]))
        assert ObjectDetection().metrics(sums) == pytest.approx({"loss": losses[-1], "accuracy": 1, "iou": 1})
    assert losses[0] == pytest.approx(losses[1]) and losses[0] < 0.01


def test_a_padding_image_has_no_loss() -> None:
    samples = [
        {"pixel_values": np.zeros((1, 4, 4), np.float32), "boxes": np.zeros((0, 4), np.float32), "index": place}
        | {"classes": np.zeros(0, np.int64)}
        for place in range(2)
    ]
    task = ObjectDetection()
    targets = without_targets(BoxCollator(2).micro_batch(samples), 1).targets
    logits, boxes = torch.randn(2, 3, 4, requires_grad=True), torch.rand(2, 3, 4, requires_grad=True)
    loss = task.loss(SimpleNamespace(logits=logits, pred_boxes=boxes), targets)
    loss.backward()
    assert task.count(targets) == 1 and loss.isfinite() and logits.grad is not None
    assert logits.grad[0].abs().sum() > 0 and logits.grad[1].abs().sum() == 0


def test_pixels_of_no_class_count_nowhere() -> None:
    task = SemanticSegmentation()
    labels = torch.tensor([[[0, 1], [NO_CLASS, 1]], [[-100, -100], [-100, -100]]])
    logits = torch.zeros(2, 2, 2, 2)
    logits[:, 1] = 5.0
    outputs, targets = SimpleNamespace(logits=logits), {"labels": labels}
    assert task.count(targets) == 3
    sums = {name: value.double() for name, value in task.evaluate(outputs, targets).items()}
    metrics = task.metrics({**sums, "loss": float(sums["loss"]), "labels": float(sums["labels"])})
    assert metrics["accuracy"] == pytest.approx(2 / 3) and metrics["mean_iou"] == pytest.approx((0 + 2 / 3) / 2)


def test_a_segmentation_map_is_augmented_like_its_image() -> None:
    numbers = np.arange(1, 17).reshape(4, 4)
    sample = {"pixel_values": numbers[None].astype(np.float32), "label": numbers, "index": 0}
    collator = ImageCollator(1, seed=3, crop_padding=2, flip=0.5)
    for place in range(8):
        (micro,) = collator([{**sample, "position": place}])
        pixels, labels = micro.inputs["pixel_values"][0, 0], micro.targets["labels"][0]
        assert torch.equal(labels[pixels > 0], pixels[pixels > 0].long())
        assert (labels[pixels == 0] == NO_CLASS).all()
