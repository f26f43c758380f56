"""Rows of a folder of sounds, without the reader of ``datasets``, which needs torchcodec and decodes every file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from ...errors import Problem, UserError
from ...models.json_file import parse_json

SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64"}
"""Files that soundfile reads."""
METADATA = ("metadata.csv", "metadata.jsonl")
FIELD = "data.source.path"


def sound_rows(folder: Path) -> list[dict[str, Any]]:
    """A row per sound: ``audio`` (the bytes and the path of the file), the columns of metadata.csv, or a ``label``.

    Raises:
        UserError: there is no sound, or a file of the metadata is missing.
    """
    metadata = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if metadata is not None:
        return [_described(folder, metadata, row) for row in _rows(metadata)]
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES]
    if not files:
        why = f"holds no sounds ({', '.join(sorted(SUFFIXES))})"
        raise UserError(Problem(FIELD, why, "name a folder with one subfolder of sounds per label", str(folder)))
    labelled = all(file.parent != folder for file in files)
    return [_row(file, folder, {"label": file.parent.name} if labelled else {}) for file in files]


def _rows(metadata: Path) -> list[dict[str, Any]]:
    text = metadata.read_text(encoding="utf-8")
    if metadata.suffix == ".csv":
        return list(csv.DictReader(text.splitlines()))
    return [parse_json(line) for line in text.splitlines() if line.strip()]


def _described(folder: Path, metadata: Path, row: dict[str, Any]) -> dict[str, Any]:
    name = row.pop("file_name", None)
    if not name or not (folder / name).is_file():
        why = f"{metadata.name} names {name!r} as file_name, which is no file there"
        raise UserError(Problem(FIELD, why, "correct the metadata", str(folder)))
    return _row(folder / name, folder, row)


def _row(file: Path, folder: Path, others: dict[str, Any]) -> dict[str, Any]:
    return {"audio": {"bytes": file.read_bytes(), "path": str(file.relative_to(folder))}, **others}
