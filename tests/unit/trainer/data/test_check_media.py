"""Tests that ``trireme check`` finds what is wrong with chats with images and audio clips before training: rows,
missing files, the processor and the chat template.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.media_chats import asked, qwen2_audio
from trireme.errors import Problem
from trireme.trainer.data.chat.chat_config import ChatConfig
from trireme.trainer.data.chat.conversation import WITH_IMAGES, WITH_MEDIA
from trireme.trainer.data.chat.media import AUDIO, KINDS
from trireme.trainer.data.check_rows import row_problems
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.processor_folder import check_media_processor
from trireme.trainer.data.row_source import RowSource

CLIP, IMAGE = {"type": "audio", "path": "a.wav"}, {"type": "image", "path": "a.png"}


def problems_of(folder: Path, rows: list[Any], chat: ChatConfig | None, wanted: dict[str, bool]) -> list[Problem]:
    (folder / "a.wav").write_bytes(b"a clip")
    (folder / "a.png").write_bytes(b"an image")
    table = folder / "chats.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": [str(table)], "nested": "text"}
    return row_problems(RowSource(source), DataConfig(source={}, chat=chat, packing=False), wanted, {})


def row(*parts: Any, **columns: Any) -> dict[str, Any]:
    return {"messages": asked("What?", "This.", *parts), **columns}


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (row({"type": "audio", "path": "b.wav"}), "there is no file b.wav in "),
        (row({"type": "audio"}, audios=["b.wav"]), "there is no file b.wav in "),
        (row({"type": "audio", "url": "https://a.b/c.wav"}), "is an address on the net"),
        (row({"type": "input_audio", "input_audio": {"data": "A", "format": "wav"}}), "neither a path nor valid"),
        (row(CLIP, {"type": "audio"}), "1 part for audio clips without a file"),
        (row(), "it has no audio clip, and every row needs one"),
        (row(CLIP, IMAGE), "holds image, and only texts and audio clips are read"),
    ],
)
@pytest.mark.parametrize("chat", [ChatConfig(), None])
def test_rows_are_refused_by_the_rules_of_training(
    second: dict[str, Any], words: str, chat: ChatConfig | None, tmp_path: Path
) -> None:
    (problem,) = problems_of(tmp_path, [row(CLIP), second], chat, WITH_MEDIA)
    assert words in problem.why and "1 of 2 rows" in problem.why and "chats.jsonl, line 2" in problem.why


def test_right_rows_are_taken(tmp_path: Path) -> None:
    both = [row(CLIP, IMAGE), row({"type": "audio"}, IMAGE, audios=["a.wav"])]
    assert problems_of(tmp_path, both, ChatConfig(), WITH_MEDIA) == []
    assert problems_of(tmp_path, [row(IMAGE), row(IMAGE)], ChatConfig(), WITH_IMAGES) == []
    assert problems_of(tmp_path, [row(CLIP), row()], ChatConfig(unusable="leave_out"), WITH_MEDIA) == []
    (problem,) = problems_of(tmp_path, [row(), row()], ChatConfig(), WITH_IMAGES)
    assert "2 of 2 rows that were checked are not usable: it has no image" in problem.why
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.wav").write_bytes(b"a clip")
    elsewhere = ChatConfig(media_folder=str(tmp_path / "more"))
    assert problems_of(tmp_path, [row({"type": "audio", "path": "b.wav"})], elsewhere, WITH_MEDIA) == []


def test_processors_and_templates_are_needed(tmp_path: Path) -> None:
    qwen2_audio().save_pretrained(tmp_path)
    assert check_media_processor(None, tmp_path, KINDS, None) == []
    (tmp_path / "chat_template.jinja").unlink()
    (problem,) = check_media_processor(str(tmp_path), None, KINDS, None)
    assert problem.field == "data.chat.template" and "shows no audio clips" in problem.why
    assert "each audio clip as <audio>" in problem.fix
    assert check_media_processor(None, tmp_path, KINDS, "a template") == []
    for file in ("chat_template.json", "tokenizer_config.json"):
        own = json.loads((tmp_path / file).read_text()) if (tmp_path / file).exists() else {}
        (tmp_path / file).write_text(json.dumps({**own, "chat_template": "{{ messages }}"}))
        assert check_media_processor(None, tmp_path, KINDS, None) == []
        (tmp_path / file).write_text(json.dumps(own))
    for file in ("processor_config.json", "preprocessor_config.json"):
        (tmp_path / file).unlink(missing_ok=True)
    for weights in (tmp_path, None):
        (problem,) = check_media_processor(None, weights, (AUDIO,), None)
        assert problem.field == "data.processor" and "which tokens audio clips stand for" in problem.why
    (problem,) = check_media_processor(str(tmp_path), None, (AUDIO,), None)
    assert problem.why.startswith("the folder has no preprocessor_config.json")


def test_neither_torch_nor_transformers_is_imported() -> None:
    files = "check_rows, trireme.trainer.data.processor_folder"
    code = f"import sys, trireme.trainer.data.{files}; assert not {{'torch', 'transformers'}} & {{*sys.modules}}"
    subprocess.run([sys.executable, "-c", code], check=True)
