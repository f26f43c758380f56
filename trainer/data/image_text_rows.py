"""Convert rows of images with captions to samples, for contrastive models and for models that generate text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...errors import Problem, UserError
from ...models.facts import Facts
from .base_collator import Sample
from .image_rows import image_sizes, opened_image, pixel_values
from .processors import channels_of, image_processor, vision_part
from .samples import Given, Samples
from .text_rows import ended, text_processor, token_counts
from .text_values import vocabulary_of

IMAGE_ARRAYS = ("pixel_values", "flattened_patches", "attention_mask", "pixel_mask")
"""Arrays that image processors make of an image."""
IMAGE_TOKENS = ("image_token_id", "image_token_index")
"""Configuration fields of models whose token sequence contains placeholder tokens for the image."""


class CaptionedImages(Samples):
    """An image and its caption, for models that read both."""

    columns: ClassVar[dict[str, bool]] = {"image": True, "text": True}
    unit = "images"
    made_of: ClassVar[dict[str, str]] = {"pixel_values": "image", "input_ids": "text"}
    most_measured: ClassVar[int] = 2_000

    def __init__(self, given: Given) -> None:
        images, tokens = image_processor(given), text_processor(given, "text")
        self.processor = ImageAndText(images, tokens)
        self.length = self.text_length = given.config.block_size
        self.channels = channels_of(vision_part(given.model))
        self.facts = Facts(vocabulary_of(tokens))

    def sample(self, row: dict[str, Any]) -> Sample:
        if not row["text"]:
            raise ValueError("it has no text")
        encoded = self.processor.tokenizer(row["text"], truncation=True, max_length=self.length, verbose=False)
        pixels = pixel_values(self.processor.image_processor, opened_image(row["image"], self.channels))
        return {**{name: np.asarray(ids, np.int64) for name, ids in encoded.items()}, "pixel_values": pixels}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return {"image": "an image", "text": str(row["text"])}

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {"tokens": token_counts(self.processor.tokenizer, rows["text"]), **image_sizes(rows["image"])}

    def longest(self) -> dict[str, float | None]:
        return {"tokens": self.length}


class WrittenCaptions(CaptionedImages):
    """An image, and the caption that the model learns to generate, with an end token."""

    made_of: ClassVar[dict[str, str]] = {"pixel_values": "image", "labels": "text"}

    def __init__(self, given: Given) -> None:
        super().__init__(given)
        if named := next((name for name in IMAGE_TOKENS if getattr(given.model, name, None) is not None), None):
            why = f"gives images beside the text, but a {given.model.model_type} has them among its tokens ({named})"
            raise UserError(Problem("task", why, "choose an architecture without, such as blip or git"))
        self.among = hasattr(given.model, "cross_layer_interval")  # IDEFICS takes several images in a text

    def sample(self, row: dict[str, Any]) -> Sample:
        if not row["text"]:
            raise ValueError("it has no text")
        tokenizer = self.processor.tokenizer
        image = opened_image(row["image"], self.channels)
        seen = self.processor.image_processor(images=image, return_tensors="np")
        seen = seen if isinstance(seen, Mapping) else {"pixel_values": seen}
        found = {name: plain(value[0]) for name, value in seen.items() if name in IMAGE_ARRAYS}
        if self.among and found["pixel_values"].ndim == 3:
            found["pixel_values"] = found["pixel_values"][None]
        return {**found, "labels": ended(tokenizer, row["text"], tokenizer, self.text_length)}


def plain(value: Any) -> np.ndarray:
    """An array as float32, or as int64 if it holds integers."""
    array = np.asarray(value)
    return array.astype(np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64)


class ImageAndText:
    """An image processor and a tokenizer, saved into one folder like a combined processor of transformers."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def save_pretrained(self, folder: Any) -> None:
        """Write the files of both into ``folder``."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
