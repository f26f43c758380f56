"""Samples of pictures with a text, their caption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...models.facts import Facts
from .base_collator import Sample
from .image_rows import opened_image, picture_sizes, pixel_values
from .processors import channels_of, image_processor
from .samples import Given, Samples
from .text_rows import text_processor, token_counts
from .text_values import vocabulary_of


class CaptionedImages(Samples):
    """A picture and its caption, for models that see both."""

    columns: ClassVar[dict[str, bool]] = {"image": True, "text": True}
    unit = "images"
    made_of: ClassVar[dict[str, str]] = {"pixel_values": "image", "input_ids": "text"}
    most_measured: ClassVar[int] = 2_000

    def __init__(self, given: Given) -> None:
        vision = getattr(given.model, "vision_config", given.model)
        images, tokens = image_processor(given, vision), text_processor(given, "text")
        self.processor = ImageAndText(images, tokens)
        self.length, self.channels = given.config.block_size, channels_of(vision)
        self.facts = Facts(vocabulary_of(tokens))

    def sample(self, row: dict[str, Any]) -> Sample:
        if not row["text"]:
            raise ValueError("it has no text")
        encoded = self.processor.tokenizer(row["text"], truncation=True, max_length=self.length, verbose=False)
        pixels = pixel_values(self.processor.image_processor, opened_image(row["image"], self.channels))
        return {**{name: np.asarray(ids, np.int64) for name, ids in encoded.items()}, "pixel_values": pixels}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return {"image": "a picture", "text": str(row["text"])}

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {"tokens": token_counts(self.processor.tokenizer, rows["text"]), **picture_sizes(rows["image"])}

    def longest(self) -> dict[str, float]:
        return {"tokens": self.length}


class ImageAndText:
    """An image processor and a tokenizer, saved side by side as transformers' processors of both are."""

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer

    def save_pretrained(self, folder: Any) -> None:
        """Write the files of both into ``folder``."""
        self.image_processor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
