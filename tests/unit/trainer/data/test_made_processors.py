"""Tests of audio and image processors built from a model's configuration, for weights that come without a processor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from transformers import (
    ASTConfig,
    BeitConfig,
    BridgeTowerConfig,
    ClapConfig,
    CLIPConfig,
    Pix2StructConfig,
    Speech2TextConfig,
    WhisperConfig,
)
from trireme.errors import UserError
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.processors import feature_extractor, image_processor
from trireme.trainer.data.samples import Given
from trireme.trainer.data.speech_collator import SpeechCollator, time_axis
from trireme.trainer.data.speech_rows import features

RATE = 16_000


def given(model: Any, **config: Any) -> Given:
    rows = Dataset.from_list([{"text": "a"}])
    return Given(DataConfig({"_target_": "x"}, **config), rows, Path("unused"), "a", None, model)


def audio(seconds: float, rate: int = RATE) -> dict[str, Any]:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * rate)).astype(np.float32)
    return {"array": noise, "sampling_rate": rate}


@pytest.mark.parametrize(
    ("model", "rate", "shape"),
    [
        (WhisperConfig(num_mel_bins=8, max_source_positions=100), None, (8, 200)),
        (ASTConfig(num_mel_bins=16, max_length=64), None, (64, 16)),
        (Speech2TextConfig(input_feat_per_channel=24), None, (98, 24)),
        (
            ClapConfig(audio_config={"spec_size": 128, "num_mel_bins": 32, "num_attention_heads": [2] * 4}),
            RATE,
            (1, 501, 32),
        ),
    ],
    ids=["whisper", "speech that is fixed", "spectra of any length", "clap"],
)
def test_spectra_have_the_model_s_frequencies_and_length(model: Any, rate: int | None, shape: tuple[int, ...]) -> None:
    extractor = feature_extractor(given(model, sampling_rate=rate))
    (made,) = features(extractor, audio(1.0)).values()
    assert made.shape == shape
    assert time_axis(made, extractor) == {2: int(shape[0] == 8), 3: 1}[len(shape)]


def test_without_a_rate_the_extractor_has_its_own() -> None:
    assert feature_extractor(given(ClapConfig())).sampling_rate == 48_000
    assert feature_extractor(given(WhisperConfig())).sampling_rate == RATE


def test_audio_beyond_a_fixed_length_is_refused() -> None:
    extractor = feature_extractor(given(WhisperConfig(num_mel_bins=8, max_source_positions=100)))
    with pytest.raises(ValueError, match=r"3.0 s is longer than the 2 s"):
        features(extractor, audio(3.0))


def test_positions_that_are_no_whole_seconds_are_refused() -> None:
    with pytest.raises(UserError, match="multiple of 50"):
        feature_extractor(given(WhisperConfig(max_source_positions=64)))


def test_spans_of_a_spectrum_are_silent_in_all_frequencies() -> None:
    model = WhisperConfig(num_mel_bins=8, max_source_positions=100)
    extractor = feature_extractor(given(model))
    (spectrum,) = features(extractor, audio(1.0)).values()
    collator = SpeechCollator(extractor, model, 2, 7, masked=0.2)
    masked = collator.mask(spectrum, 3)
    silent = (masked == 0).all(0)
    assert 20 <= silent.sum() <= 60 and not (spectrum == 0).all(0).any()
    assert np.array_equal(masked[:, ~silent], spectrum[:, ~silent])


@pytest.mark.parametrize(
    ("model", "size"),
    [
        (CLIPConfig(vision_config={"image_size": 32}), (32, 32)),
        (BridgeTowerConfig(vision_config={"image_size": 32}), (32, 32)),
        (BeitConfig(image_size=48), (48, 48)),
    ],
    ids=["clip", "bridgetower", "beit"],
)
def test_images_have_the_size_of_the_vision_model(model: Any, size: tuple[int, int]) -> None:
    processor = image_processor(given(model))
    assert type(processor).__name__.lower().startswith(model.model_type[:4])
    made = processor(images=Image.new("RGB", (70, 50)), return_tensors="np")["pixel_values"][0]
    assert made.shape[1:] == size


def test_patches_have_the_model_s_number_and_size() -> None:
    model = Pix2StructConfig(vision_config={"patch_embed_hidden_size": 48, "seq_len": 16})
    made = image_processor(given(model))(images=Image.new("RGB", (70, 50)), return_tensors="np")
    assert made["flattened_patches"][0].shape == (16, 2 + 48)
