"""Convert rows of audio and text to samples: speech with its transcript, and audio with captions.

Transcripts are for encoder-decoder models that generate the text (Whisper), captions for contrastive models (CLAP).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from ...models.facts import Facts
from .audio import seconds
from .base_collator import Sample
from .padded_collator import INPUTS
from .processors import feature_extractor
from .samples import Given, Samples
from .speech_rows import features
from .text_rows import ended, text_processor, token_counts
from .text_values import vocabulary_of


class WrittenSpeech(Samples):
    """A clip of speech and the text that is spoken in it, with the token that ends a text."""

    columns: ClassVar[dict[str, bool]] = {"audio": True, "text": True}
    unit = "frames"
    made_of: ClassVar[dict[str, str]] = {"input_values": "audio", "input_features": "audio", "labels": "text"}
    most_measured: ClassVar[int] = 2_000

    def __init__(self, given: Given) -> None:
        self.features, tokens = feature_extractor(given), text_processor(given, "text")
        self.processor = SpeechAndText(self.features, tokens)
        self.length = self.text_length = given.config.block_size
        self.facts = Facts(vocabulary_of(tokens))

    def sample(self, row: dict[str, Any]) -> Sample:
        text = " ".join(str(row["text"] or "").split())
        if not text:
            raise ValueError("it has no text")
        tokenizer = self.processor.tokenizer
        return {**features(self.features, row["audio"]), "labels": ended(tokenizer, text, tokenizer, self.text_length)}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return {"audio": "an audio clip", "text": str(row["text"])}

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {"seconds": seconds(rows["audio"]), "tokens": token_counts(self.processor.tokenizer, rows["text"])}

    def longest(self) -> dict[str, float | None]:
        return {"tokens": self.length}


class CaptionedAudio(Samples):
    """An audio clip and its caption, for models that read both."""

    columns: ClassVar[dict[str, bool]] = {"audio": True, "text": True}
    unit = "frames"
    made_of: ClassVar[dict[str, str]] = {"input_values": "audio", "input_features": "audio", "input_ids": "text"}
    most_measured: ClassVar[int] = 2_000

    def __init__(self, given: Given) -> None:
        self.features, tokens = feature_extractor(given), text_processor(given, "text")
        self.processor = SpeechAndText(self.features, tokens)
        self.length, self.facts = given.config.block_size, Facts(vocabulary_of(tokens))

    def sample(self, row: dict[str, Any]) -> Sample:
        if not row["text"]:
            raise ValueError("it has no text")
        encoded = self.processor.tokenizer(row["text"], truncation=True, max_length=self.length, verbose=False)
        arrays = {name: np.asarray(ids, np.int64) for name, ids in encoded.items() if name in INPUTS}
        return {**features(self.features, row["audio"]), **arrays}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return {"audio": "an audio clip", "text": str(row["text"])}

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {"seconds": seconds(rows["audio"]), "tokens": token_counts(self.processor.tokenizer, rows["text"])}

    def longest(self) -> dict[str, float | None]:
        return {"tokens": self.length}


class SpeechAndText:
    """A feature extractor and a tokenizer, saved into one folder like a combined processor of transformers."""

    def __init__(self, feature_extractor: Any, tokenizer: Any) -> None:
        self.feature_extractor, self.tokenizer = feature_extractor, tokenizer

    def save_pretrained(self, folder: Any) -> None:
        """Write the files of both into ``folder``."""
        self.feature_extractor.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
