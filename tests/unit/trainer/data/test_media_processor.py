"""Tests of processors whose part for videos needs torchvision: they load without it, and keep its settings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.media_chats import byte_tokenizer, qwen2_audio, qwen_vl, smolvlm
from trireme.errors import UserError
from trireme.trainer.data.chat.media import IMAGE
from trireme.trainer.data.chat.media_encoder import kinds_of
from trireme.trainer.data.media_processor import MediaProcessor
from trireme.trainer.data.processors import loaded

Image = pytest.importorskip("PIL.Image")
QWEN = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")


def pictured(processor: Any, token: str) -> dict[str, Any]:
    image = Image.new("RGB", (16, 16), "red")
    return dict(processor(text=[token + "a"], images=[[image]], return_tensors="np"))


@pytest.mark.parametrize("kind", QWEN)
def test_a_processor_loads_without_its_part_for_videos(kind: str, tmp_path: Path) -> None:
    processor = qwen_vl(kind, byte_tokenizer("<|image_pad|>", "<|video_pad|>"))
    processor.save_pretrained(tmp_path)
    found = MediaProcessor.from_pretrained(tmp_path, local_files_only=True)
    assert type(found).__name__ == kind and kinds_of(found) == (IMAGE,)
    assert found.chat_template == processor.chat_template
    made, before = (pictured(each, "<|image_pad|>") for each in (found, processor))
    assert made.keys() == before.keys() and all((made[name] == before[name]).all() for name in made)
    assert (made["input_ids"] == 3).sum() == 4


def test_settings_for_videos_are_saved_as_they_were(tmp_path: Path) -> None:
    qwen_vl("Qwen2VLProcessor", byte_tokenizer("<|image_pad|>", "<|video_pad|>")).save_pretrained(tmp_path)
    MediaProcessor.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    before, after = (
        json.loads((folder / "processor_config.json").read_text()) for folder in (tmp_path, tmp_path / "again")
    )
    assert after == before and after["video_processor"]["video_processor_type"] == "Qwen2VLVideoProcessor"


def test_files_of_older_versions_load(tmp_path: Path) -> None:
    """Published folders name the class in one file, and hold no file for the whole processor."""
    qwen_vl("Qwen2VLProcessor", byte_tokenizer("<|image_pad|>", "<|video_pad|>")).save_pretrained(tmp_path)
    whole = json.loads((tmp_path / "processor_config.json").read_text())
    (tmp_path / "processor_config.json").unlink()
    images = {**whole["image_processor"], "processor_class": "Qwen2VLProcessor"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(images))
    found = MediaProcessor.from_pretrained(tmp_path)
    assert type(found).__name__ == "Qwen2VLProcessor" and found.image_processor.patch_size == 4
    assert found.video_processor.to_dict()["patch_size"] == 4


def test_smolvlm_needs_num2words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("num2words")
    smolvlm(byte_tokenizer("<image>", "<fake_token_around_image>", "<global-img>")).save_pretrained(tmp_path)
    assert (pictured(MediaProcessor.from_pretrained(tmp_path), "<image>")["input_ids"] == 3).sum() == 4
    monkeypatch.setattr(sys.modules["transformers.models.smolvlm.processing_smolvlm"], "num2words", None)
    with pytest.raises(UserError, match="num2words") as refused:
        loaded(MediaProcessor, tmp_path, "data.processor", "name another")
    assert "install the package that it needs" in str(refused.value)


def test_other_processors_load_as_before(tmp_path: Path) -> None:
    qwen2_audio().save_pretrained(tmp_path)
    assert type(MediaProcessor.from_pretrained(tmp_path)).__name__ == "Qwen2AudioProcessor"
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    assert type(MediaProcessor.from_pretrained(tmp_path / "tokenizer")).__name__ == type(byte_tokenizer()).__name__
