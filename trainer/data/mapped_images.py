"""Convert rows for semantic segmentation to samples: an image, and a map with a class number for each pixel."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from ...models.facts import Facts
from .base_collator import Sample
from .image_collator import NO_CLASS
from .image_rows import image_sizes, opened_image, pixel_values, read_image
from .processors import channels_of, image_processor, vision_part
from .samples import Given, Samples


class MappedImages(Samples):
    """An image and its map. Classes have the names in ``data.labels``, else their numbers."""

    columns: ClassVar[dict[str, bool]] = {"image": True, "map": True}
    media_columns: ClassVar[tuple[str, ...]] = ("image", "map")
    unit = "images"
    made_of: ClassVar[dict[str, str]] = {"pixel_values": "image", "labels": "map"}
    most_measured: ClassVar[int] = 2_000

    def __init__(self, given: Given) -> None:
        self.processor, self.channels = image_processor(given), channels_of(vision_part(given.model))
        self.resizes_maps = "segmentation_maps" in inspect.signature(self.processor.preprocess).parameters
        names = given.config.labels or [str(number) for number in range(_classes(given))]
        self.facts = Facts(None, tuple(names))

    def sample(self, row: dict[str, Any]) -> Sample:
        image, numbers = opened_image(row["image"], self.channels), class_numbers(row["map"])
        if numbers.shape != (image.height, image.width):
            raise ValueError(f"its map of {numbers.shape} pixels is not of the size of its image")
        known = numbers < len(self.facts.labels)
        if not (known | (numbers == NO_CLASS)).all():
            wrong = int(numbers[~known & (numbers != NO_CLASS)][0])
            raise ValueError(f"its map has a {wrong}, but there are {len(self.facts.labels)} classes")
        if self.resizes_maps:
            made = self.processor(images=image, segmentation_maps=numbers, return_tensors="np")
            pixels, labels = made["pixel_values"][0], made["labels"][0]
        else:
            pixels = pixel_values(self.processor, image)
            size = pixels.shape[2], pixels.shape[1]
            labels = np.asarray(Image.fromarray(numbers).resize(size, Image.Resampling.NEAREST))
        return {"pixel_values": np.asarray(pixels, np.float32), "label": np.asarray(labels, np.int64)}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return {"image": "an image", "map": "a map of its classes"}

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return image_sizes(rows["image"])


def class_numbers(stored: Any) -> np.ndarray:
    """The class numbers in a stored map: uint8 [height, width].

    Raises:
        ValueError: it is no image with one class number per pixel.
    """
    image = read_image(stored, "map", lambda image: image)
    array = np.asarray(image)
    if array.ndim != 2:
        raise ValueError(f"its map is an image of the mode {image.mode}; it must have one number per pixel")
    if not ((array >= 0) & (array <= NO_CLASS)).all():
        wrong = array[(array < 0) | (array > NO_CLASS)][0]
        raise ValueError(f"its map has a {wrong}; classes have numbers from 0 to {NO_CLASS - 1}, {NO_CLASS} is none")
    return array.astype(np.uint8)


def _classes(given: Given) -> int:
    """Number of classes in the maps of the rows to train on."""
    most = 0
    for row in given.rows.select_columns(["map"]):
        numbers = class_numbers(row["map"])  # type: ignore[index]
        most = max(most, int(numbers[numbers != NO_CLASS].max(initial=0)))
    return most + 1
