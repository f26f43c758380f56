"""Tests of image data: decoding, the image processor, segmentation maps, and augmentations that depend on seed and
position only.
"""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from trireme.errors import UserError
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.image_collator import ImageCollator
from trireme.trainer.data.image_rows import LabelledImages, opened_image
from trireme.trainer.data.mapped_images import class_numbers
from trireme.trainer.data.samples import Given

MODEL = SimpleNamespace(model_type="vit", image_size=8, num_channels=1)


def stored(image: Image.Image, **options: Any) -> dict[str, Any]:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return {"bytes": file.getvalue(), "path": None}


def given(tmp_path: Path, model: Any = MODEL, labels: Any = (0, 1), **config: Any) -> Given:
    images = [stored(Image.new("RGB", (20, 10), color)) for color in ("red", "blue")]
    features = Features(
        {"image": {"bytes": Value("binary"), "path": Value("string")}, "label": ClassLabel(names=["r", "b"])}
    )
    rows = Dataset.from_dict({"image": images, "label": list(labels)}, features=features)
    return Given(DataConfig({"_target_": "x"}, **config), rows, tmp_path, "print", None, model)


def test_a_sample_has_the_size_and_the_channels_of_the_model(tmp_path: Path) -> None:
    for model, shape in (
        (MODEL, (1, 8, 8)),
        (SimpleNamespace(model_type="vit", image_size=[6, 4], num_channels=3), (3, 6, 4)),
        (SimpleNamespace(model_type="resnet", num_channels=1), (1, 16, 16)),
        (SimpleNamespace(model_type="bit", num_channels=3), (3, 16, 16)),
    ):
        size = None if hasattr(model, "image_size") else 16
        samples = LabelledImages(given(tmp_path, model, image_size=size))
        sample = samples.sample(samples_row(samples, tmp_path, model))
        assert sample["pixel_values"].shape == shape and sample["pixel_values"].dtype == np.float32
        assert sample["label"] == 0 and samples.facts.labels == ("r", "b")


def samples_row(samples: LabelledImages, tmp_path: Path, model: Any) -> dict[str, Any]:
    return given(tmp_path, model).rows[0]


def test_a_processor_beside_the_weights_is_used(tmp_path: Path) -> None:
    made = LabelledImages(given(tmp_path))
    made.processor.image_mean = [0.25]
    made.processor.save_pretrained(tmp_path / "weights")
    own = given(tmp_path)
    beside = Given(own.config, own.rows, tmp_path, "print", tmp_path / "weights", MODEL)
    assert LabelledImages(beside).processor.image_mean == (0.25,)
    named = given(tmp_path, processor=str(tmp_path / "weights"))
    assert LabelledImages(named).processor.image_mean == (0.25,)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.processor.*\n.*has no preprocessor_config\.json"):
        LabelledImages(given(tmp_path, processor=str(tmp_path / "empty")))
    with pytest.raises(UserError, match=r"data\.image_size"):
        LabelledImages(given(tmp_path, processor=str(tmp_path / "weights"), image_size=4))


def test_images_are_turned_upright() -> None:
    image = Image.new("L", (4, 2))
    exif = image.getexif()
    exif[0x0112] = 6  # held on its side
    assert opened_image(stored(image, exif=exif.tobytes()), 1).size == (2, 4)


@pytest.mark.parametrize("broken", [None, {"bytes": b"no image", "path": None}, {"bytes": None, "path": "none"}, 3])
def test_values_that_are_no_image_are_refused(broken: Any) -> None:
    with pytest.raises(ValueError, match="image"):
        opened_image(broken, 3)


def sample(index: int, position: int) -> dict[str, Any]:
    pixels = np.random.default_rng(index).random((3, 6, 6)).astype(np.float32)
    return {"pixel_values": pixels, "label": index, "index": index, "position": position}


def test_an_augmented_image_depends_on_seed_and_position_only() -> None:
    several = ImageCollator(4, seed=1, crop_padding=2, flip=0.5)
    alone = ImageCollator(1, seed=1, crop_padding=2, flip=0.5)
    samples = [sample(index, 100 + index) for index in range(16)]
    one = torch.cat([micro.inputs["pixel_values"] for micro in several(samples)])
    other = torch.cat([micro.inputs["pixel_values"] for micro in reversed(alone(samples[::-1]))])
    assert torch.equal(one, other)
    later = torch.cat([micro.inputs["pixel_values"] for micro in several([sample(i, 200 + i) for i in range(16)])])
    seeded = ImageCollator(16, seed=2, crop_padding=2, flip=0.5)(samples)[0].inputs["pixel_values"]
    assert not torch.equal(one, later) and not torch.equal(one, seeded)


def test_images_of_an_evaluation_are_not_augmented() -> None:
    collator = ImageCollator(4, seed=1, crop_padding=2, flip=1.0)
    samples = [sample(index, index) for index in range(4)]
    micro = collator.micro_batch(samples)
    assert np.array_equal(micro.inputs["pixel_values"].numpy(), [one["pixel_values"] for one in samples])
    assert micro.targets["labels"].tolist() == [0, 1, 2, 3] and micro.length == 4
    flipped = ImageCollator(4, seed=1, flip=1.0)(samples)[0].inputs["pixel_values"]
    assert torch.equal(flipped, micro.inputs["pixel_values"].flip(-1))


def test_images_of_several_sizes_are_refused() -> None:
    other = {**sample(1, 1), "pixel_values": np.zeros((3, 5, 6), np.float32)}
    with pytest.raises(UserError, match="several sizes"):
        ImageCollator(2, seed=0).micro_batch([sample(0, 0), other])


@pytest.mark.parametrize("wrong", [{"crop_padding": -1}, {"flip": 1.5}])
def test_wrong_values_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is (below 0|not a share)"):
        ImageCollator(1, seed=0, **wrong)


def test_maps_of_classes_are_read_from_anything_that_holds_an_image(tmp_path: Path) -> None:
    numbers = np.array([[0, 3], [255, 1]])
    file = tmp_path / "map.png"
    Image.fromarray(numbers.astype(np.uint8)).save(file)
    for stored in (str(file), {"path": str(file), "bytes": None}, file.read_bytes(), Image.open(file)):
        assert (class_numbers(stored) == numbers).all()


def test_wrong_maps_of_classes_are_refused(tmp_path: Path) -> None:
    wide, coloured = tmp_path / "wide.png", Image.new("RGB", (2, 2))
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(wide)
    with pytest.raises(ValueError, match="its map has a 300; classes have numbers from 0 to 254"):
        class_numbers(str(wide))
    with pytest.raises(ValueError, match="mode RGB"):
        class_numbers(coloured)
    for stored, words in ((None, "it has no map"), (b"no image", "its map is of no format"), (7, "its map is a int")):
        with pytest.raises(ValueError, match=words):
            class_numbers(stored)
