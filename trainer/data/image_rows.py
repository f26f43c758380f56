"""Convert rows of labelled images to samples (pixel values and a label), for classification or regression. Functions
here open an image, read its size and compute its pixel values; other kinds of samples use them too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...models.facts import Facts
from .base_collator import Sample
from .labels import Labels
from .processors import channels_of, image_processor
from .samples import Given, Samples

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
"""Number of colour channels -> Pillow's name."""


class LabelledImages(Samples):
    """An image and its label: a class, several classes, or a number (``labels.py``)."""

    columns: ClassVar[dict[str, bool]] = {"image": True, "label": True}
    unit = "images"
    made_of: ClassVar[dict[str, str]] = {"pixel_values": "image", "labels": "label"}
    most_measured: ClassVar[int] = 2_000

    def __init__(self, given: Given) -> None:
        self.processor, self.labels = image_processor(given), Labels(given)
        self.channels = channels_of(given.model)
        self.facts = Facts(None, self.labels.names, self.labels.problem)

    def sample(self, row: dict[str, Any]) -> Sample:
        pixels = pixel_values(self.processor, opened_image(row["image"], self.channels))
        return {"pixel_values": pixels, "label": self.labels.of(row)}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        image = row["image"]
        path = image.get("path") if isinstance(image, dict) else None
        return {"image": path or "an image without a file name", "label": self.labels.shown(row)}

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return image_sizes(rows["image"])


def image_sizes(images: Sequence[Any]) -> dict[str, list[float]]:
    """Width and height of stored images, read from their headers; files that are no images are left out."""
    from PIL import Image, UnidentifiedImageError

    sizes = []
    for stored in images:
        try:
            image = stored if isinstance(stored, Image.Image) else Image.open(_file(stored))
            sizes.append(image.size)
        except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
            continue
    return {"pixels wide": [width for width, _ in sizes], "pixels high": [height for _, height in sizes]}


def pixel_values(processor: Any, image: Image) -> np.ndarray:
    """The pixel values that the processor computes from an image: float32 [channels, height, width]."""
    return np.asarray(processor(images=image, return_tensors="np")["pixel_values"][0], np.float32)


def opened_image(stored: Any, channels: int) -> Image:
    """Open an image given as bytes, path or Pillow image, turn it upright, and convert it to so many colour channels.

    Raises:
        ValueError: it is no image.
    """
    from PIL import ImageOps

    def convert(image: Image) -> Image:
        # Cameras store how they were held; Pillow does not turn the image by itself.
        upright = ImageOps.exif_transpose(image)
        return (on_white(upright) if channels in (1, 3) else upright).convert(MODES[channels])

    return read_image(stored, "image", convert)


def read_image(stored: Any, column: str, convert: Callable[[Image], Image]) -> Image:
    """Open an image given as bytes, path or Pillow image, and convert it.

    Args:
        column: what the image is called in messages.

    Raises:
        ValueError: it is no image.
    """
    from PIL import Image, UnidentifiedImageError

    if stored is None:
        raise ValueError(f"it has no {column}")
    try:
        image = convert(stored if isinstance(stored, Image.Image) else Image.open(_file(stored, column)))
        image.load()
    except UnidentifiedImageError:  # whose message is an address in memory
        raise ValueError(f"its {column} is of no format that Pillow reads") from None
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"its {column} cannot be read: {error}") from None
    return image


def on_white(image: Image) -> Image:
    """An image whose transparent parts are replaced by white; other images are unchanged."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def _file(stored: Any, column: str = "image") -> Any:
    if isinstance(stored, dict):
        if stored.get("bytes") is None and stored.get("path") is None:
            raise ValueError(f"its image has neither bytes nor a path; it has {', '.join(stored) or 'nothing'}")
        return io.BytesIO(stored["bytes"]) if stored.get("bytes") is not None else Path(stored["path"])
    if isinstance(stored, bytes | str):
        return io.BytesIO(stored) if isinstance(stored, bytes) else Path(stored)
    raise ValueError(f"its {column} is a {type(stored).__name__}; give a file, its bytes, or a Pillow image")
