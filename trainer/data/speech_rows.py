"""Convert rows of audio to samples: speech with its transcript (for CTC models), and audio clips with a label."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ...models.facts import Facts
from ...models.hub import local_path
from .audio import seconds, waveform
from .base_collator import Sample
from .check_tokenizer import FIELD
from .labels import Labels
from .processors import feature_extractor, loaded
from .samples import Given, Samples, texts_of
from .text_values import vocabulary_of
from .tokenizer import load_or_train
from .tokenizer_kinds import SPEECH
from .waveform_frames import output_frames


class LabelledAudio(Samples):
    """Audio clips with a label: a class, several classes, or a number (``labels.py``)."""

    columns: ClassVar[dict[str, bool]] = {"audio": True, "label": True}
    unit = "frames"
    made_of: ClassVar[dict[str, str]] = {"input_values": "audio", "input_features": "audio", "labels": "label"}
    most_measured: ClassVar[int] = 2_000

    def __init__(self, given: Given) -> None:
        self.processor, self.labels = feature_extractor(given), Labels(given)
        self.facts = Facts(None, self.labels.names, self.labels.problem)
        self.frames = output_frames(given.model)

    def sample(self, row: dict[str, Any]) -> Sample:
        arrays = features(self.processor, row["audio"])
        values = next(iter(arrays.values()))
        if values.ndim == 1 and self.frames(len(values)) < 1:
            raise ValueError(f"its audio of {len(values)} samples is too short for one frame of the model")
        return {**arrays, "label": self.labels.of(row)}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return _shown(row, "label")

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        return {"seconds": seconds(rows["audio"])}


class TranscribedSpeech(Samples):
    """Audio clips of speech, with the text that is spoken in them."""

    columns: ClassVar[dict[str, bool]] = {"audio": True, "text": True}
    unit = "frames"
    made_of: ClassVar[dict[str, str]] = {"input_values": "audio", "input_features": "audio", "labels": "text"}
    most_measured: ClassVar[int] = 2_000

    def __init__(self, given: Given) -> None:
        from transformers import Wav2Vec2Processor

        tokenizer, self.features = speech_tokenizer(given), feature_extractor(given)
        self.processor = Wav2Vec2Processor(self.features, tokenizer)
        self.facts = Facts(vocabulary_of(tokenizer))
        self.fold = case_of(tokenizer)
        self.frames = output_frames(given.model)

    def sample(self, row: dict[str, Any]) -> Sample:
        text = " ".join(str(row["text"] or "").split())
        if not text:
            raise ValueError("it has no text")
        arrays = features(self.features, row["audio"])
        labels = np.asarray(self.processor.tokenizer.encode(self.fold(text)), np.int64)
        frames = int(self.frames(len(next(iter(arrays.values())))))
        needed = len(labels) + int((labels[1:] == labels[:-1]).sum())  # a blank stands between two equal ones
        if frames < needed:
            raise ValueError(f"its audio gives {frames} frames, too few for a text of {needed} characters and blanks")
        return {**arrays, "labels": labels}

    def show(self, row: dict[str, Any]) -> dict[str, str]:
        return _shown(row, "text")

    def lengths(self, rows: Mapping[str, list[Any]]) -> dict[str, list[float]]:
        texts = [float(len(" ".join(str(text or "").split()))) for text in rows["text"]]
        return {"seconds": seconds(rows["audio"]), "characters": texts}


def features(extractor: Any, stored: Any) -> dict[str, np.ndarray]:
    """Inputs of the model for a stored audio clip: float32 [time], [time, frequencies] or, if the extractor pads every
    clip to one length, [frequencies, time] or [channels, time, frequencies].

    Raises:
        ValueError: the clip is longer than this length.
    """
    rate = extractor.sampling_rate
    samples = waveform(stored, rate)
    most = getattr(extractor, "n_samples", None) or getattr(extractor, "nb_max_samples", None)
    if most is not None and len(samples) > most:
        raise ValueError(f"its audio of {len(samples) / rate:.1f} s is longer than the {most / rate:g} s that fit")
    found = extractor(samples, sampling_rate=rate, return_attention_mask=False)
    name = extractor.model_input_names[0]
    return {name: np.asarray(found[name][0], np.float32)}


def speech_tokenizer(given: Given) -> Any:
    """The tokenizer that the recipe names, or that of the weights, or else a new one of the texts' characters."""
    from transformers import AutoTokenizer, Wav2Vec2CTCTokenizer

    config = given.config.tokenizer
    if config.path is not None:
        return loaded(AutoTokenizer, local_path(config.path, field=FIELD), FIELD)
    if given.weights is not None and (given.weights / "tokenizer_config.json").is_file():
        return loaded(AutoTokenizer, given.weights, "model.weights")
    characters = replace(config, kind="characters")
    trained = load_or_train(characters, partial(texts_of, given, "text"), given.print, str(given.cache))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocab.json"
        file.write_text(json.dumps(trained.get_vocab()))
        special: dict[str, Any] = {**SPEECH, "bos_token": None, "eos_token": None}
        return Wav2Vec2CTCTokenizer(str(file), **special)


def case_of(tokenizer: Any) -> Any:
    """A function that converts a text to lower or upper case if the vocabulary has only letters of that case."""
    letters = "".join(token for token in tokenizer.get_vocab() if len(token) == 1)
    if letters == letters.lower():
        return str.lower
    return str.upper if letters == letters.upper() else str


def _shown(row: dict[str, Any], other: str) -> dict[str, str]:
    audio = row["audio"]
    path = audio.get("path") if isinstance(audio, dict) else None
    return {"audio": path or "an audio clip without a file name", other: str(row[other])}
