"""Read a folder of audio files as rows, without decoding the files.

The reader of ``datasets`` is not used, because it needs torchcodec and decodes every file.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...errors import Problem, UserError
from ...models.json_file import parse_json

SUFFIXES = {".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf", ".w64"}
"""Files that soundfile reads."""
METADATA = ("metadata.csv", "metadata.jsonl")
NAME, FIELD = "file_name", "data.source.path"


def audio_columns(folder: Path) -> list[str]:
    """Names of the columns of ``audio_rows``, without reading an audio clip.

    Raises:
        UserError: as ``audio_rows``.
    """
    metadata = _metadata(folder)
    if metadata is not None:
        named = (_placed(metadata, place, row) for place, row in _rows(metadata))
        return list(dict.fromkeys(["audio", *(name for _, others in named for name in others)]))
    return ["audio", "label"] if _labelled(_files(folder), folder) else ["audio"]


def audio_rows(folder: Path) -> list[dict[str, Any]]:
    """A row per file: ``audio`` (the bytes and the path of the file), the columns of metadata.csv, or a ``label``. All
    rows have the same columns; columns that the metadata of a row lack are null.

    Raises:
        UserError: there is no audio file, or the metadata cannot be read or name no file.
    """
    metadata = _metadata(folder)
    if metadata is not None:
        placed = [_placed(metadata, place, row) for place, row in _rows(metadata)]
        columns = dict.fromkeys(name for _, others in placed for name in others)
        return [_row(file, folder, {name: others.get(name) for name in columns}) for file, others in placed]
    files = _files(folder)
    labelled = _labelled(files, folder)
    return [_row(file, folder, {"label": file.parent.name} if labelled else {}) for file in files]


def _metadata(folder: Path) -> Path | None:
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _files(folder: Path) -> list[Path]:
    files = [file for file in sorted(folder.rglob("*")) if file.suffix.lower() in SUFFIXES]
    if not files:
        why = f"holds no audio files ({', '.join(sorted(SUFFIXES))})"
        raise UserError(Problem(FIELD, why, "name a folder with one subfolder of audio files per label", str(folder)))
    return files


def _labelled(files: list[Path], folder: Path) -> bool:
    """Whether every audio file lies in a subfolder, which is its label.

    Raises:
        UserError: some do, and some do not.
    """
    beside = [file for file in files if file.parent == folder]
    if beside and len(beside) < len(files):
        why = f"holds files beside its subfolders ({beside[0].name}), which would leave all of them without a label"
        raise UserError(Problem(FIELD, why, "move them into subfolders, or write a metadata.csv", str(folder)))
    return not beside


def _rows(metadata: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, row) of a file with metadata."""
    try:
        text = metadata.read_text(encoding="utf-8-sig")  # with the mark that spreadsheets put first, or without
    except (UnicodeDecodeError, OSError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
        raise _wrong(metadata, f"cannot be read as UTF-8: {reason}") from None
    if metadata.suffix == ".csv":
        yield from _csv_rows(metadata, text)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            raise _wrong(metadata, f"line {number} is not valid JSON: {error}") from None
        if not isinstance(row, dict):
            raise _wrong(metadata, f"line {number} is not an object with columns")
        yield f"line {number}", row


def _csv_rows(metadata: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), restkey="", strict=True)
    try:
        for row in reader:
            cells, header = [*row.values()], reader.fieldnames or []
            if "" in row or None in cells:
                given = len(header) + len(row.get("") or ()) - cells.count(None)
                raise _wrong(metadata, f"line {reader.line_num} has {given} cells, and the header has {len(header)}")
            yield f"line {reader.line_num}", row
    except csv.Error as error:
        raise _wrong(metadata, f"line {reader.line_num} cannot be read: {error}") from None


def _placed(metadata: Path, place: str, row: dict[str, Any]) -> tuple[Path, dict[str, Any]]:
    """(audio file, other columns) of a row of metadata."""
    if NAME not in row:
        has = ", ".join(map(str, row)) or "nothing"
        raise _wrong(metadata, f"{place} has no column {NAME}; it has {has}")
    name = row.pop(NAME)
    file = metadata.parent / str(name)
    if not name or not file.is_file():
        raise _wrong(metadata, f"{place} names {name!r} as {NAME}, which is not a file there")
    return file, row


def _wrong(metadata: Path, why: str) -> UserError:
    return UserError(Problem(FIELD, f"{metadata.name}: {why}", "correct the metadata", str(metadata.parent)))


def _row(file: Path, folder: Path, others: dict[str, Any]) -> dict[str, Any]:
    shown = file.relative_to(folder) if file.is_relative_to(folder) else file
    return {"audio": {"bytes": file.read_bytes(), "path": str(shown)}, **others}
