"""Samples for object detection (images with bounding boxes and a label for each box), and their collator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from ...errors import Problem, UserError
from ...models.facts import Facts
from ...models.loss import IGNORE
from ...parallel.micro_batch import MicroBatch
from .base_collator import Collator, Sample, positions
from .image_collator import stacked
from .image_rows import image_sizes, opened_image, pixel_values
from .padded_collator import padded
from .processors import channels_of, image_processor, vision_part
from .report.image_views import with_boxes
from .report.sample_views import sample_views
from .report.views import Collated, ImageView
from .samples import Given, Samples


class BoxedImages(Samples):
    """An image, its boxes as (left, top, width, height) in pixels, and the label of each."""

    columns: ClassVar[dict[str, bool]] = {"image": True, "boxes": True, "labels": True}
    unit = "images"
    label_column: ClassVar[str] = "labels"
    most_measured: ClassVar[int] = 2_000

    def __init__(self, given: Given) -> None:
        self.processor, self.channels = image_processor(given), channels_of(vision_part(given.model))
        if getattr(self.processor, "do_center_crop", None):
            why = "crops images (do_center_crop), which would move them under their boxes"
            raise UserError(
                Problem("data.processor", why, "set do_center_crop to false in its preprocessor_config.json")
            )
        found = {str(label) for labels in given.rows["labels"] for label in labels or []}
        self.facts = Facts(None, tuple(given.config.labels or sorted(found)))

    def sample(self, row: dict[str, Any]) -> Sample:
        image = opened_image(row["image"], self.channels)
        labels, boxes = [str(label) for label in row["labels"] or []], row["boxes"] or []
        if len(labels) != len(boxes):
            raise ValueError(f"it has {len(boxes)} boxes and {len(labels)} labels")
        if unknown := [label for label in labels if label not in self.facts.labels]:
            raise ValueError(f"its label {unknown[0]!r} is none of {', '.join(self.facts.labels[:10])}")
        corners = np.asarray(boxes, np.float32).reshape(-1, 4)
        middles = corners[:, :2] + corners[:, 2:] / 2
        size = np.asarray([image.width, image.height] * 2, np.float32)
        return {
            "pixel_values": pixel_values(self.processor, image),
            "boxes": np.concatenate([middles, corners[:, 2:]], 1) / size,
            "classes": np.asarray([self.facts.labels.index(label) for label in labels], np.int64),
        }

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return {"image": "an image", "labels": ", ".join(map(str, row["labels"] or []))}

    def views(self, sample: Collated) -> dict[str, Any]:
        there = sample.targets["classes"] != IGNORE
        boxes, classes = sample.targets["boxes"][there], sample.targets["classes"][there].tolist()
        image = sample_views(sample, self.processor, None, self.facts)["pixel_values"]
        framed = with_boxes(image, boxes, classes) if isinstance(image, ImageView) else image
        named = [
            f"{self.facts.labels[number]} at {', '.join(f'{value:.3f}' for value in box)}"
            for number, box in zip(classes, boxes, strict=True)
        ]
        return {"image (pixel_values)": framed, "boxes (middle and size)": "\n".join(named) or "none"}

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {**image_sizes(rows["image"]), "boxes": [float(len(boxes or [])) for boxes in rows["boxes"]]}


@dataclass
class BoxCollator(Collator):
    """Stacks images of one size. The targets are ``boxes`` [images, most, 4] as shares of the image (middle and
    size), ``classes`` [images, most], and ``real_images``, false for rows that only fill a place."""

    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        most = max(1, *(len(sample["classes"]) for sample in samples))
        targets = {
            "boxes": padded([sample["boxes"] for sample in samples], most, 0.0),
            "classes": padded([sample["classes"] for sample in samples], most, IGNORE),
            "real_images": torch.ones(len(samples), dtype=torch.bool),
        }
        return MicroBatch({"pixel_values": stacked(samples)}, targets, positions(samples), len(samples))
