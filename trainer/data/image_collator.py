"""Collator for images of one size, with data augmentation in training: random crops with padding, and horizontal flips.

The augmentation is a function of (seed, position of the sample in the run). So every epoch sees other variants, and
they are the same for any number of workers and ranks and after a resume. Evaluation has no augmentation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...errors import Problem, UserError
from ...parallel.micro_batch import MicroBatch
from .base_collator import Collator, Sample, draws, positions

NO_CLASS = 255
"""Label of pixels that belong to no class, which the loss ignores."""


@dataclass
class ImageCollator(Collator):
    """Makes micro-batches of images and their labels."""

    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    seed: int
    """Given by the engine from ``seed``."""
    crop_padding: int = 0
    """Pixels of zeros around an image, out of which a crop of its own size is taken at random; 0 takes no crop."""
    flip: float = 0.0
    """Share of the images that are mirrored left to right."""

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise ValueError(f"crop_padding={self.crop_padding} is below 0; set it to a number of pixels, or 0")
        if not 0 <= self.flip <= 1:
            raise ValueError(f"flip={self.flip} is not a share of the images; set it to 0.5, or to 0 for none")

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        varied = [
            {**sample, **self.varied(sample, int(place))}
            for sample, place in zip(samples, positions(samples), strict=True)
        ]
        return super().__call__(varied)

    def varied(self, sample: Sample, position: int) -> Sample:
        """The image at ``position`` of the stream with augmentation, and its label if this is a segmentation map."""
        pixels = sample["pixel_values"]
        found = {"pixel_values": self.vary(pixels, position)}
        label = sample.get("label")
        if label is not None and np.ndim(label) == 2:
            found["label"] = self.vary(label[None], position, fill=NO_CLASS)[0]
        return found

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        pixels = stacked(samples)
        labels = torch.as_tensor(np.stack([np.asarray(sample["label"]) for sample in samples]))
        return MicroBatch({"pixel_values": pixels}, {"labels": labels}, positions(samples), len(samples))

    def vary(self, pixels: np.ndarray, position: int, fill: int = 0) -> np.ndarray:
        """An image [channels, height, width] with the augmentation of ``position`` in the stream.

        Args:
            fill: value of the pixels around the image.
        """
        numbers = draws(self.seed, position, "image")
        (height, width), room = pixels.shape[1:], self.crop_padding
        top, left = numbers.integers(2 * room + 1, size=2)
        if room:
            pixels = np.pad(pixels, ((0, 0), (room, room), (room, room)), constant_values=fill)
            pixels = pixels[:, top : top + height, left : left + width]
        return pixels[:, :, ::-1].copy() if numbers.random() < self.flip else np.ascontiguousarray(pixels)


def stacked(samples: Sequence[Sample]) -> torch.Tensor:
    """The images of samples, [samples, channels, height, width].

    Raises:
        UserError: they are of several sizes.
    """
    shapes = {sample["pixel_values"].shape for sample in samples}
    if len(shapes) > 1:
        fix = "set data.image_size, or name a data.processor that brings images to one size"
        why = f"gives images of several sizes in one micro-batch: {sorted(shapes)[:3]}"
        raise UserError(Problem("data.processor", why, fix))
    return torch.from_numpy(np.stack([sample["pixel_values"] for sample in samples]))
