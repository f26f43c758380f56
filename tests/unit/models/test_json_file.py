"""Reading a JSON file gives its content, or raises ValueError if it is invalid."""

from __future__ import annotations

from pathlib import Path

import pytest
from trireme.models.json_file import read_json


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000])
def test_invalid_json_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError):
        read_json(tmp_path / "config.json")


def test_valid_json_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"a": [1]}')
    assert read_json(tmp_path / "config.json") == {"a": [1]}
