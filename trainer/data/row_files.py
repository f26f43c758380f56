"""Data sources that read rows from local files: tables, folders of images or audio, and WebDataset tar files.

A source of rows is a dataclass with ``rows(cache_dir)`` (a ``datasets.Dataset``, or a list of mappings) and
``fingerprint()``. Most files are read by `datasets`. Images and audio stay encoded until a sample needs them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import Problem, UserError
from .chat.media_forms import FOLDER
from .content_stamp import content_stamp, hash_json, time_stamp
from .file_columns import column_names
from .file_formats import ChosenFiles, Format, choose_files, refuse
from .file_text import one_delimiter
from .first_rows import first_rows
from .json_rows import rows_of_json

if TYPE_CHECKING:
    from datasets import Dataset

BUILDERS = {
    "txt": "text",
    "jsonl": "json",
    "json": "json",
    "csv": "csv",
    "tsv": "csv",
    "parquet": "parquet",
    "arrow": "arrow",
}
"""Format of a file -> the reader of ``datasets``."""


@dataclass
class RowFiles:
    """Rows of local tables: JSON (lines or an array), CSV, TSV, Parquet, Arrow, or lines of text."""

    paths: list[str]
    """Files, folders (all files under them), or glob patterns (``**`` for any depth); all of one format."""
    format: Literal["auto", "txt", "jsonl", "json", "csv", "tsv", "parquet", "arrow"] = "auto"
    """Format of the files; auto goes by the suffix, and refuses unknown ones."""
    delimiter: str | None = None
    """Character between the cells of a row; null takes a comma in csv files, a tab (``\\t``) in tsv files."""
    nested: Literal["columns", "text"] = "columns"
    """Lists and objects of JSON files: columns of one type, in which keys that a row lacks become null; or the text of
    their JSON, as it stands in the file."""

    def __post_init__(self) -> None:
        self.paths = [self.paths] if isinstance(self.paths, str) else self.paths
        self.delimiter = one_delimiter(self.delimiter)

    def rows(self, cache_dir: str) -> Dataset | Iterable[dict[str, Any]]:
        files, format = self._files()
        if self.nested == "text" and format in ("json", "jsonl"):
            return rows_of_json(files)
        options: dict[str, Any] = {}
        if format in ("csv", "tsv"):
            options = {"delimiter": self._delimiter(format)}
        return _read(BUILDERS[format], files, cache_dir, "data.source.paths", **options)

    def rows_with_folders(self, cache_dir: str) -> Dataset | Iterable[dict[str, Any]]:
        """The rows with a further column ``FOLDER``: the folder of the file that a row is from."""
        files, format = self._files()
        if self.nested == "text" and format in ("json", "jsonl"):
            return rows_of_json(files, FOLDER)
        from datasets import concatenate_datasets

        parts = []
        for folder, own in groupby(files, os.path.dirname):
            data: Any = replace(self, paths=[*own], format=format).rows(cache_dir)
            parts.append(data if FOLDER in data.column_names else data.add_column(FOLDER, [folder] * len(data)))
        return concatenate_datasets(parts) if len(parts) > 1 else parts[0]

    def folders(self) -> list[str]:
        """The folder of each file."""
        return [os.path.dirname(file) for file in self._files()[0]]

    def look(self) -> None:
        """Refuse files that do not exist, or are of several formats."""
        self._files()

    def column_names(self) -> list[str] | None:
        """Names of the columns of the first file."""
        files, format = self._files()
        return column_names(files[0], format, self._delimiter(format))

    def first_rows(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Pairs (place, row) of all files if they are small together, else of the beginning of the first one. The rows
        have a further column ``FOLDER``, as in ``rows_with_folders``."""
        files, format = self._files()
        return first_rows(files, format)

    def notes(self) -> list[str]:
        return self._chosen().notes

    def fingerprint(self) -> str:
        return self._fingerprint(time_stamp)

    def content(self) -> str:
        """Like ``fingerprint``, but equal for copies of the files."""
        return self._fingerprint(content_stamp)

    def _fingerprint(self, stamp: Callable[[Path], Any]) -> str:
        files, format = self._files()
        nested = ["text"] if self.nested == "text" else []
        return hash_json([format, self.delimiter, *nested, [stamp(Path(file)) for file in files]])

    def _delimiter(self, format: Format) -> str:
        return self.delimiter or ("\t" if format == "tsv" else ",")

    def _chosen(self) -> ChosenFiles:
        return choose_files(self.paths, None if self.format == "auto" else self.format)

    def _files(self) -> tuple[list[str], Format]:
        chosen = self._chosen()
        refuse(chosen)
        formats = sorted(set(chosen.files.values()))
        if len(formats) > 1:
            why = f"holds files of several formats ({', '.join(formats)})"
            raise UserError(Problem("data.source.paths", why, "name files of one format", self.paths))
        return list(chosen.files), formats[0]


IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
"""Suffixes by which a folder counts as one of images; the reader of ``datasets`` knows more."""


@dataclass
class Folder:
    """Images or audio files of a folder, one row per file: ``image`` or ``audio``, and ``label``, its folder's name.

    A ``metadata.csv`` (or .jsonl) with a column ``file_name`` gives further columns.
    """

    path: str
    """The folder."""
    kind: Literal["image", "audio"] = "image"
    """Kind of the files."""

    def rows(self, cache_dir: str) -> Dataset:
        folder = self._folder()
        if self.kind == "audio":
            from datasets import Dataset
            from pyarrow import ArrowException

            from .audio_folder import audio_rows

            try:
                return Dataset.from_list(audio_rows(folder))
            except (ArrowException, TypeError) as error:
                why = f"has metadata whose columns hold values of several types: {' '.join(str(error).split())}"
                fix = "give every row of a column the same type"
                raise UserError(Problem("data.source.path", why, fix, self.path)) from None
        return _read("imagefolder", None, cache_dir, "data.source.path", data_dir=str(folder))

    def look(self) -> None:
        """Refuse a folder that does not exist, or holds no file of this kind."""
        folder = self._folder()
        if self.kind == "audio":
            self.column_names()
        elif not any(file.suffix.lower() in IMAGE_SUFFIXES for file in folder.rglob("*")):
            why = f"holds no images ({', '.join(IMAGE_SUFFIXES)})"
            fix = "name a folder with one subfolder of images per label, or set data.source.kind=audio"
            raise UserError(Problem("data.source.path", why, fix, self.path))

    def column_names(self) -> list[str] | None:
        """Names of the columns of audio clips; None for images, of which the reader of ``datasets`` decides."""
        if self.kind != "audio":
            return None
        from .audio_folder import audio_columns

        return audio_columns(self._folder())

    def fingerprint(self) -> str:
        return self._fingerprint(time_stamp)

    def content(self) -> str:
        """Like ``fingerprint``, but equal for copies of the folder."""
        return self._fingerprint(content_stamp)

    def _fingerprint(self, stamp: Callable[[Path], Any]) -> str:
        folder = self._folder()
        files = (path for path in sorted(folder.rglob("*")) if path.is_file())
        return hash_json([self.kind, [(path.relative_to(folder).as_posix(), *stamp(path)) for path in files]])

    def _folder(self) -> Path:
        folder = Path(os.path.expanduser(self.path))
        if not folder.is_dir():
            why = "is a file, not a folder" if folder.is_file() else "there is no such folder"
            fix = f"name a folder with one subfolder of {self.kind} files per label"
            raise UserError(Problem("data.source.path", why, fix, self.path))
        return folder


@dataclass
class WebDataset:
    """Samples of tar files in WebDataset's layout: files that share a name up to the first dot are one row, whose
    columns are what follows (``0001.jpg``, ``0001.txt`` give the columns ``jpg`` and ``txt``)."""

    paths: list[str]
    """Tar files, or glob patterns."""

    def __post_init__(self) -> None:
        self.paths = [self.paths] if isinstance(self.paths, str) else self.paths

    def rows(self, cache_dir: str) -> Dataset:
        return _read("webdataset", [str(file) for file in self._files()], cache_dir, "data.source.paths")

    def look(self) -> None:
        """Refuse patterns that match nothing."""
        self._files()

    def fingerprint(self) -> str:
        return hash_json([time_stamp(file) for file in self._files()])

    def content(self) -> str:
        """Like ``fingerprint``, but equal for copies of the files."""
        return hash_json([content_stamp(file) for file in self._files()])

    def _files(self) -> list[Path]:
        found: list[Path] = []
        for pattern in self.paths:
            path = Path(os.path.expanduser(pattern))
            matches = [path] if path.is_file() else sorted(path.parent.glob(path.name))
            if not matches:
                why = "there is no such file"
                raise UserError(Problem("data.source.paths", why, "name tar files, or a pattern of them", pattern))
            found += matches
        return found


def _read(builder: str, files: list[str] | None, cache_dir: str, field: str, **options: Any) -> Dataset:
    """All rows that a reader of ``datasets`` gives; its errors become one message."""
    from datasets import load_dataset

    try:
        return load_dataset(builder, data_files=files, split="train", cache_dir=cache_dir, **options)  # type: ignore
    except Exception as error:  # each reader raises errors of its own, and hides the cause inside another one
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        fix = "correct the file; every row needs the same columns of the same types"
        raise UserError(Problem(field, f"cannot be read: {reason}", fix, files or options.get("data_dir"))) from error
