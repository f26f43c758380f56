"""Tests of JSON with thousands of nested brackets: checkpoints, metrics, chats and configurations that contain it are
refused or skipped, without a crash.
"""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from trireme.errors import UserError
from trireme.launch.chat_prompt import chat_prompt
from trireme.launch.convert.convert_arguments import converted
from trireme.models.safetensors_headers import read_head
from trireme.parallel.zero.deepspeed_json import read_file
from trireme.trainer.base_identity import BASE, read_base
from trireme.trainer.callbacks.metrics_file import read_metrics
from trireme.trainer.checkpoint.layout import MANIFEST, read_manifest
from trireme.trainer.checkpoint.load.block_reader import read_header
from trireme.trainer.data.chat.conversation import conversation_of
from trireme.trainer.preference_reference import FILE, read_reference

DEEP = "[" * 100_000


def test_files_of_checkpoints(tmp_path: Path) -> None:
    for name, read in ((MANIFEST, read_manifest), (BASE, read_base), (FILE, read_reference)):
        (tmp_path / name).write_text(DEEP)
        with pytest.raises(ValueError, match="nested too deeply"):
            read(tmp_path)


def test_headers_of_weights(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(struct.pack("<Q", len(DEEP)) + DEEP.encode())
    for read in (read_head, read_header):
        with pytest.raises(ValueError, match="nested too deeply"):
            read(file)


def test_a_line_of_metrics_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(f'{{"step": 1}}\n{DEEP}\n{{"step": 2}}\n')
    assert [line["step"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2]


def test_json_files_that_are_given_to_commands(tmp_path: Path) -> None:
    file = tmp_path / "given.json"
    file.write_text(DEEP)
    with pytest.raises(UserError, match="nested too deeply"):
        converted(file)
    with pytest.raises(UserError, match="nested too deeply"):
        chat_prompt(str(file), None)


def test_a_configuration_of_deepspeed(tmp_path: Path) -> None:
    (tmp_path / "ds.json").write_text(DEEP)
    config, problems = read_file(str(tmp_path / "ds.json"))
    assert config is None and "nested too deeply" in str(problems[0])


def test_a_cell_of_a_chat() -> None:
    with pytest.raises(ValueError, match="nested too deeply"):
        conversation_of({"messages": DEEP})
