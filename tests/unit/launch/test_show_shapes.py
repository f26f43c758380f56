"""``trireme data`` displays samples of many kinds, such as texts, images, segmentation maps, boxes and audio."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from families.kinds import recipe
from helpers.command import trireme_here
from trireme.trainer.data.report.image_views import class_colour, class_map, joined_patches, stretched, with_boxes
from trireme.trainer.data.report.views import ImageView

needs_espeak = pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")


@pytest.mark.parametrize(
    ("architecture", "told", "images", "audio"),
    [
        ("upernet", [r"map \(labels\)", r"^    \w+ \d+\.\d%"], 4, 0),
        ("yolos", [r"^  pixels wide", r"^  boxes  ", r"^    [a-z]+ at 0\.\d+, 0\.\d+", r"^  label +count"], 2, 0),
        ("idefics", [r"image \(pixel_values\)", r"^  input_ids\n    \[PAD\]« \[CLS\] number \d.*»\[\[SEP\]\]"], 2, 0),
        ("pix2struct", [r"^  flattened_patches\n    64 x 50, ", r"text \(labels\)\n    \[CLS\]"], 2, 0),
        ("clip", [r"text \(input_ids\)"], 2, 0),
        pytest.param("whisper", [r"audio \(input_features\)", r"^  seconds "], 2, 0, marks=needs_espeak),
        pytest.param("clap", [r"audio \(input_features\)", r"text \(input_ids\)"], 2, 0, marks=needs_espeak),
        pytest.param("wav2vec2", [r"audio \(input_values\)", r"text \(labels\)"], 0, 2, marks=needs_espeak),
    ],
)  # fmt: skip
def test_samples_of_an_architecture_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], architecture: str, told: list[str], images: int, audio: int
) -> None:
    file, page = tmp_path / "shape.yaml", tmp_path / "page.html"
    file.write_text(yaml.safe_dump(recipe(architecture, 2, 2)))
    result = trireme_here(capsys, "data", str(file), "--samples", "2", "--set", "train", "--html", str(page))
    assert result.returncode == 0, result.stderr
    for words in told:
        assert re.search(words, result.stdout, re.M), (words, result.stdout)
    text = page.read_text()
    assert (text.count("data:image/png"), text.count("data:audio/wav")) == (images, audio)


def test_a_map_has_a_colour_for_each_class() -> None:
    numbers = np.array([[0, 0, 0], [2, 2, 255]])
    shown = class_map(numbers, ["sky", "sea", "ship"])
    assert shown.about == "sky 50.0%, ship 33.3%"
    assert tuple(shown.pixels[0, 0]) == class_colour(0) and tuple(shown.pixels[1, 0]) == class_colour(2)
    assert not shown.pixels[1, 2].any() and class_colour(0) != class_colour(1)


def test_boxes_are_drawn_where_they_are() -> None:
    grey = ImageView(np.zeros((11, 21), np.uint8))
    framed = with_boxes(grey, np.array([[0.5, 0.5, 0.5, 0.4], [0.0, 0.0, 9.0, 9.0]]), [1, 0]).pixels
    assert tuple(framed[3, 5]) == tuple(framed[7, 15]) == class_colour(1)
    assert not framed[5, 10].any() and not grey.pixels.any()
    assert tuple(framed[0, 0]) == class_colour(0)  # a box beyond the image is drawn at its edge


def test_patches_are_joined_to_their_image() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.float32).reshape(4, 6, 3)
    patches = [[row + 1, column + 1, *image[2 * row : 2 * row + 2, 2 * column : 2 * column + 2].ravel()]
               for row in range(2) for column in range(3)]  # fmt: skip
    joined = joined_patches(np.array([*patches, [0] * 14], np.float32))
    assert joined is not None and np.array_equal(joined, stretched(image))
    assert joined_patches(np.zeros((3, 14), np.float32)) is None and joined_patches(np.ones((3, 9), np.float32)) is None
