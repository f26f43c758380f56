"""Make displayable images of a model's inputs and labels, for the report of ``trireme data``.

Pixel normalisation is undone, segmentation maps are coloured, and bounding boxes are drawn.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np

from .views import ImageView

MOST_NAMES = 8
"""Classes of a map that are named."""
GOLDEN = 0.618034
"""Steps of this share around the circle of hues keep the colours of neighbouring numbers apart."""


def denormalised(pixels: np.ndarray, processor: Any) -> np.ndarray:
    """Undo a processor's normalisation: pixels [channels, height, width] become colours from 0 to 255,
    [height, width, 3] or [height, width]."""
    mean, deviation = getattr(processor, "image_mean", None), getattr(processor, "image_std", None)
    colours = np.asarray(pixels, np.float32)
    if getattr(processor, "do_normalize", False) and _per_channel(mean, pixels) and _per_channel(deviation, pixels):
        scale, shift = (np.asarray(values, np.float32)[:, None, None] for values in (deviation, mean))
        shown = np.clip((colours * scale + shift) * 255.0, 0, 255).round().astype(np.uint8)
    elif colours.min() >= 0 and colours.max() <= 1:
        shown = (colours * 255.0).round().astype(np.uint8)
    else:
        shown = stretched(colours)
    return shown[0] if len(shown) == 1 else np.ascontiguousarray(shown[:3].transpose(1, 2, 0))


def stretched(values: np.ndarray) -> np.ndarray:
    """Numbers as shades, the least black and the greatest white."""
    found = np.nan_to_num(np.asarray(values, np.float32))
    low, high = float(found.min()), float(found.max())
    return ((found - low) / max(high - low, 1e-12) * 255).round().astype(np.uint8)


def joined_patches(patches: np.ndarray) -> np.ndarray | None:
    """Join square patches in three colours, as Pix2Struct takes them, to an image; None for other patches. Each patch
    begins with its row and column, counted from 1 (0 is padding)."""
    side = round(((patches.shape[1] - 2) / 3) ** 0.5) if patches.shape[1] > 2 else 0
    there = patches[patches[:, 0] > 0]
    if not side or patches.shape[1] != 2 + 3 * side * side or not len(there):
        return None
    rows, columns = (there[:, place].astype(int) for place in (0, 1))
    shown = np.zeros((rows.max(), side, columns.max(), side, 3), np.uint8)
    shown[rows - 1, :, columns - 1] = stretched(there[:, 2:]).reshape(-1, side, side, 3)
    return shown.reshape(rows.max() * side, columns.max() * side, 3)


def class_map(numbers: np.ndarray, names: Sequence[str]) -> ImageView:
    """A map of classes [height, width] with a colour for each class; pixels without a class are black."""
    known = (numbers >= 0) & (numbers < len(names))
    colours = np.array([(0, 0, 0), *(class_colour(number) for number in range(len(names)))], np.uint8)
    counts = np.bincount(numbers[known].astype(np.int64), minlength=len(names))
    often = [number for number in np.argsort(-counts, kind="stable")[:MOST_NAMES] if counts[number]]
    shares = [f"{names[number]} {counts[number] / numbers.size:.1%}" for number in often]
    return ImageView(colours[np.where(known, numbers + 1, 0)], ", ".join(shares) or "no class")


def class_colour(number: int) -> tuple[int, int, int]:
    """A colour for the class of this number, always the same."""
    red, green, blue = colorsys.hsv_to_rgb(number * GOLDEN % 1.0, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)


def with_boxes(image: ImageView, boxes: np.ndarray, classes: Sequence[int]) -> ImageView:
    """An image with a frame around each box.

    Args:
        boxes: [boxes, 4], middle and size as shares of the image.
        classes: number of the class of each.
    """
    pixels = image.pixels if image.pixels.ndim == 3 else np.repeat(image.pixels[:, :, None], 3, 2)
    pixels = pixels.copy()
    high, wide = pixels.shape[:2]
    for (x, y, width, height), number in zip(boxes, classes, strict=True):
        left, right = (int(np.clip(round(edge * (wide - 1)), 0, wide - 1)) for edge in (x - width / 2, x + width / 2))
        top, bottom = (int(np.clip(round(edge * (high - 1)), 0, high - 1)) for edge in (y - height / 2, y + height / 2))
        pixels[[top, bottom], left : right + 1] = class_colour(number)
        pixels[top : bottom + 1, [left, right]] = class_colour(number)
    return ImageView(pixels, image.about)


def _per_channel(values: Any, pixels: np.ndarray) -> bool:
    return isinstance(values, list | tuple) and len(values) == len(pixels)
