"""Tests of images with captions: reading a folder, samples, collation, and a white background for transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from trireme.errors import UserError
from trireme.trainer.data.captioned_folder import CaptionedFolder
from trireme.trainer.data.image_rows import opened_image
from trireme.trainer.data.image_text_collator import ImageTextCollator

Image = pytest.importorskip("PIL.Image")


def write_image(path: Path, color: tuple[int, ...]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGBA", (4, 4), color).save(path)


def test_a_folder_of_captioned_images(tmp_path: Path) -> None:
    write_image(tmp_path / "a" / "owl.png", (9, 9, 9, 255))
    write_image(tmp_path / "b" / "cat.png", (5, 5, 5, 255))
    write_image(tmp_path / "no_caption.png", (1, 1, 1, 255))
    (tmp_path / "a" / "owl.txt").write_text("An owl.\nEin Uhu.\n")
    (tmp_path / "b" / "cat.txt").write_text("\n")
    source = CaptionedFolder(str(tmp_path))
    assert [row["text"] for row in source._rows()] == ["An owl."]
    before = source.fingerprint()
    (tmp_path / "a" / "owl.txt").write_text("An eagle owl.\n")
    assert source.fingerprint() != before
    for missing, words in (("nowhere", "no such folder"), ("b/cat.png", "no such folder")):
        with pytest.raises(UserError, match=words):
            CaptionedFolder(str(tmp_path / missing)).look()


def test_transparent_parts_lie_on_white(tmp_path: Path) -> None:
    write_image(tmp_path / "half.png", (0, 0, 0, 0))
    stored = {"bytes": (tmp_path / "half.png").read_bytes(), "path": None}
    assert np.asarray(opened_image(stored, 3)).min() == 255
    assert opened_image(stored, 4).getpixel((0, 0))[3] == 0  # type: ignore[index]


def test_captions_are_padded_and_images_augmented_by_position() -> None:
    generator = np.random.default_rng(0)
    samples = [
        {
            "input_ids": np.arange(2, 5 + place),
            "pixel_values": generator.random((3, 8, 8), np.float32),
            "index": place,
            "position": 10 + place,
        }
        for place in range(4)
    ]
    collator = ImageTextCollator(2, seed=1, crop_padding=2, flip=0.5, pad_token_id=0, block_size=12)
    first, second = collator(samples)
    assert first.inputs["input_ids"].shape == (2, 12) and first.inputs["attention_mask"].sum(1).tolist() == [3, 4]
    assert bool(first.targets["paired"].all()) and first.samples.tolist() == [10, 11]
    again = collator(samples[2:])[0]
    assert torch.equal(again.inputs["pixel_values"], second.inputs["pixel_values"])
    moved = collator([{**sample, "position": sample["position"] + 4} for sample in samples])[0]
    assert not torch.equal(moved.inputs["pixel_values"], first.inputs["pixel_values"])
    still = collator.micro_batch(samples[:2])
    assert np.array_equal(still.inputs["pixel_values"][0].numpy(), samples[0]["pixel_values"])


def test_byte_order_marks_are_removed_and_images_without_captions_counted(tmp_path: Path) -> None:
    for name, caption in {"a": "\ufeffan oar", "b": "\n", "c": None}.items():
        Image.new("RGB", (4, 4)).save(tmp_path / f"{name}.png")
        if caption is not None:
            (tmp_path / f"{name}.txt").write_text(caption, encoding="utf-8")
    source = CaptionedFolder(str(tmp_path))
    assert source.rows(str(tmp_path / "cache"))["text"] == ["an oar"]
    assert [note.split(" are ")[0] for note in source.notes()] == [
        "1 image(s) without a text file of their name",
        "1 image(s) whose text file has an empty first line",
    ]
