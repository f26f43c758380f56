"""Tests of files of images and audio clips that rows name: caches and resumed runs notice when they have changed."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from helpers.media_chats import asked, qwen2_audio
from trireme.errors import UserError
from trireme.trainer.data.chat.chat_config import ChatConfig
from trireme.trainer.data.chat.media_chat_rows import MultimodalChats
from trireme.trainer.data.chat.prepare_chats import reasons_of
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.media_files import MediaFiles, paths_in
from trireme.trainer.data.open_corpus import open_corpus
from trireme.trainer.data.rows_corpus import RowSamples
from trireme.trainer.data.samples import Given
from trireme.trainer.settings import TrainerConfig
from trireme.trainer.tasks.audio_classification import AudioClassification
from trireme.trainer.tasks.image_classification import ImageClassification
from trireme.trainer.tasks.semantic_segmentation import SemanticSegmentation
from trireme.trainer.tasks.task import Task

Image = pytest.importorskip("PIL.Image")
soundfile = pytest.importorskip("soundfile")
RATE = 16_000
VISION = SimpleNamespace(model_type="vit", image_size=8, num_channels=3, num_labels=2)
SPEECH = SimpleNamespace(model_type="wav2vec2", feat_extract_norm="layer", conv_kernel=[10], conv_stride=[5])


def sound(file: Path, length: int, seed: int = 0) -> None:
    soundfile.write(file, np.random.default_rng(seed).uniform(-0.5, 0.5, length), RATE)


def draw(file: Path, number: int) -> None:
    Image.new("RGB", (8, 8), (number, number, number)).save(file)


def table_of(folder: Path, kind: str) -> Path:
    """A table of paths of eight files, with a further column."""
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for number in range(8):
        file = folder / f"{number}.{'wav' if kind == 'audio' else 'png'}"
        sound(file, 800, number) if kind == "audio" else draw(file, number)
        rows.append({kind: str(file), "label": "ab"[number % 2]})
        if kind == "map":
            Image.new("L", (8, 8), number % 2).save(file)
            rows[-1] = {"image": {"path": str(file)}, "map": str(file)}
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


@pytest.mark.parametrize(
    ("kind", "task", "model"),
    [
        ("image", ImageClassification, VISION),
        ("map", SemanticSegmentation, VISION),
        ("audio", AudioClassification, SPEECH),
    ],
)
def test_prints_of_rows_hold_the_files_content(kind: str, task: type[Task], model: Any, tmp_path: Path) -> None:
    table = table_of(tmp_path / "files", kind)
    source = {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": [str(table)]}
    config = DataConfig(source, cache_dir=str(tmp_path / "cache"), held_out=0.3, packing=False)

    def prints() -> dict[str, Any]:
        settings = TrainerConfig(max_steps=1, global_batch_size=2, micro_batch_size=2)
        return open_corpus(config, 0, settings, task(), model=model).prints()

    first = prints()
    file = next(file for file in sorted(table.parent.iterdir()) if file.suffix != ".jsonl")
    os.utime(file, (1, 1))
    assert prints() == first and "media" in first
    sound(file, 900) if kind == "audio" else Image.new("L", (8, 8), 1).save(file)
    changed = prints()
    assert changed["documents"] == first["documents"] and changed["media"] != first["media"]
    file.unlink()
    if kind != "map":  # which is read when training begins
        assert prints()["media"] not in (first["media"], changed["media"])


def test_copies_elsewhere_have_the_same_content(tmp_path: Path) -> None:
    table_of(tmp_path / "here", "image")
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    here, there = (MediaFiles(str(tmp_path / name / f"{n}.png") for n in (3, 1, 3)) for name in ("here", "there"))
    assert len(here.paths) == 2 and here.times != there.times
    assert here.content(tmp_path) == there.content(tmp_path)
    assert MediaFiles(()).times == MediaFiles(()).content(tmp_path) == ""


def test_paths_are_read_beside_stored_bytes() -> None:
    images = [{"bytes": b"x", "path": "a.png"}, {"bytes": None, "path": "b.png"}, {"bytes": b"y", "path": None}, None]
    rows = Dataset.from_dict({"image": images, "audio": ["c.wav", None, "d.wav", ""], "label": ["e", "f", "g", "h"]})
    assert [*paths_in(rows, ("image", "audio"))] == ["b.png", "c.wav", "d.wav"]
    assert [*paths_in(rows, ("map",))] == []


def test_changed_clips_of_chats_are_encoded_again(tmp_path: Path) -> None:
    """A relative path, a column, and an address of a file name the same kind of file."""
    processor = qwen2_audio()
    processor.save_pretrained(tmp_path / "processor")
    chat = ChatConfig(media_folder=str(tmp_path), unusable="leave_out")
    config = DataConfig({}, chat=chat, block_size=100, processor=str(tmp_path / "processor"), packing=False)
    for number in range(3):
        sound(tmp_path / f"{number}.wav", 4000, number)
    parts: list[dict[str, Any]] = [{"type": "audio", "path": "0.wav"}, {"type": "audio"}]
    parts.append({"type": "audio", "audio": (tmp_path / "2.wav").as_uri()})
    texts = [json.dumps(asked("What?", "This.", part)) for part in parts]
    rows = Dataset.from_dict({"messages": texts, "audios": [[], ["1.wav"], []]})

    def made() -> tuple[list[int], str]:
        given = Given(config, rows, tmp_path / "cache", "print", None, None)
        found = MultimodalChats(given).made(rows, "train", "data.source")
        assert found.files is not None
        return found.rows["length"], found.files.content(tmp_path / "cache")

    before = made()
    for number in range(3):
        sound(tmp_path / f"{number}.wav", 8000, number)
        after = made()
        assert after[0][number] > before[0][number] and after[1] != before[1]
        before = after
    (tmp_path / "1.wav").unlink()
    assert len(made()[0]) == 2
    sound(tmp_path / "1.wav", 8000, 1)
    assert made() == before


def test_missing_files_are_one_reason() -> None:
    reasons = [f"there is no file {number} a.png in /x or /y" for number in range(4)] + ["", "it has no image"]
    said = reasons_of(np.array(reasons, object), np.array([True] * 4 + [False, True]), "train")
    first, second = said.split("; ")
    assert first == "4 since there is no file 0 a.png in /x or /y or the like (the first is row 1 of the train rows)"
    assert second == "1 since it has no image (the first is row 6 of the train rows)"


def test_a_processor_of_another_model_is_refused(tmp_path: Path) -> None:
    processor = qwen2_audio()
    processor.save_pretrained(tmp_path / "processor")
    sound(tmp_path / "0.wav", 4000)
    config = DataConfig({}, block_size=100, processor=str(tmp_path / "processor"), packing=False)
    text = json.dumps(asked("What?", "This.", {"type": "audio", "path": str(tmp_path / "0.wav")}))
    given = Given(config, Dataset.from_dict({"messages": [text]}), tmp_path / "cache", "print", None, None)
    for name in ("audio_token_id", "audio_token_index"):
        MultimodalChats(replace(given, model=SimpleNamespace(**{name: 3, "image_token_id": 7})))
        with pytest.raises(
            UserError, match=rf"(?s)data\.processor.*<audio>, has the id 3, and the model's {name} is 4"
        ):
            MultimodalChats(replace(given, model=SimpleNamespace(**{name: 4})))


def test_a_clip_deleted_in_training_is_a_problem_of_its_row(tmp_path: Path) -> None:
    qwen2_audio().save_pretrained(tmp_path / "processor")
    sound(tmp_path / "0.wav", 4000)
    config = DataConfig({}, block_size=100, processor=str(tmp_path / "processor"), packing=False)
    text = json.dumps(asked("What?", "This.", {"type": "audio", "path": str(tmp_path / "0.wav")}))
    given = Given(config, Dataset.from_dict({"messages": [text]}), tmp_path / "cache", "print", None, None)
    rows = RowSamples(given.rows, MultimodalChats(given))
    assert "input_features" in rows[0]
    (tmp_path / "0.wav").unlink()
    with pytest.raises(UserError, match=r"(?s)data\.source.*no file .*0\.wav \(sample 1 of the set train"):
        rows[0]
