"""Where documents come from. A recipe chooses a source by ``_target_`` in ``data.source``.

A source is a dataclass with ``load`` (all documents as an Arrow data set with a column ``text``), ``stream`` (the
same, read as it goes) and ``fingerprint`` (a string that changes with the content and names the cached work).
A user's own class with these three takes part by its import path (docs/extending.md); ``open_source.py`` holds it to
the contract. Only ``Hub`` may touch the network.
"""

from __future__ import annotations

import logging
import sysconfig
import time
import tokenize
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...errors import Problem, UserError
from .arrow_texts import write_texts
from .content_stamp import content_stamp, hash_json, time_stamp
from .document_files import ReadOptions, read_documents
from .file_formats import ChosenFiles, Format, choose_files, refuse
from .file_text import decoded
from .hub_source import Hub

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["Files", "Hub", "PythonSources", "Source"]
log = logging.getLogger("trireme.data")
MOST_PROBLEMS = 20
"""Bad files reported together; after so many there is one cause behind them."""
SMALL = 8 << 20
"""Bytes of files that a check reads to the end."""
HEAD = 20
"""Documents that a check reads of a larger file."""
CHECK_SECONDS = 1.0
"""How long a check reads heads of files; of the rest it has seen that they exist."""


class Source(Protocol):
    """What ``data.source`` must offer."""

    def load(self, cache_dir: str) -> Dataset:
        """All documents, with a column ``text``; ``cache_dir`` is scratch space that is deleted after preparation."""
        ...

    def stream(self) -> IterableDataset:
        """The same documents in the same order, read as they are asked for."""
        ...

    def fingerprint(self) -> str:
        """Changes when the documents change."""
        ...

    # Optional, beside these: ``look() -> list[str] | None``, which refuses what a glance shows and gives the documents
    # if they are few; ``content() -> str``, a fingerprint that a copy elsewhere shares; ``notes() -> list[str]``, lines
    # for people about what was found; ``without_text``, names of what gave no document in the last ``load``.


@dataclass
class PythonSources:
    """Python source files: by default the standard library of the running Python, which every machine has."""

    roots: list[str] | None = None
    """Folders to search; null is the standard library."""
    exclude: list[str] = field(default_factory=lambda: ["site-packages", "dist-packages", "__pycache__"])
    """Names of folders that are left out."""

    def __post_init__(self) -> None:
        self.roots = [self.roots] if isinstance(self.roots, str) else self.roots
        self.exclude = [self.exclude] if isinstance(self.exclude, str) else self.exclude
        self.skipped = 0  # files of the last load that could not be decoded

    def load(self, cache_dir: str) -> Dataset:
        """One document per file, decoded as PEP 263 says; files that cannot be decoded are skipped and counted."""
        self.skipped = 0
        return write_texts(self._documents(), cache_dir)

    def stream(self) -> IterableDataset:
        raise UserError(
            Problem(
                "data.streaming",
                "Python sources are a folder of small files and cannot be streamed",
                "set data.streaming=false, or use data=files_streaming",
                True,
            )
        )

    def fingerprint(self) -> str:
        return hash_json([(name, *time_stamp(path)) for name, path in self._files()])

    def look(self) -> None:
        """Refuse folders that are not there, or hold no Python."""
        if not self._files():
            where = ", ".join(self.roots or ["the standard library"])
            raise UserError(
                Problem("data.source.roots", "holds no .py files", "name a folder of Python sources", where)
            )

    def content(self) -> str:
        return hash_json([(name, *content_stamp(path)) for name, path in self._files()])

    def _files(self) -> list[tuple[str, Path]]:
        """(path under its root, path), sorted, so that the order is the same on every file system."""
        roots = self.roots if self.roots is not None else [sysconfig.get_paths()["stdlib"]]
        missing = [root for root in roots if not Path(root).expanduser().is_dir()]
        if missing:
            raise UserError(
                *(
                    Problem("data.source.roots", "there is no such folder", "name an existing folder", root)
                    for root in missing
                )
            )
        excluded, files = set(self.exclude), []
        for root in (Path(root).expanduser() for root in roots):
            found = ((path.relative_to(root), path) for path in root.rglob("*.py"))
            files += [
                (name.as_posix(), path) for name, path in found if not excluded & set(name.parts) and path.is_file()
            ]
        return sorted(files)

    def _documents(self) -> Iterator[str]:
        for name, path in self._files():
            try:
                with tokenize.open(path) as file:
                    yield file.read()
            except (SyntaxError, UnicodeDecodeError, LookupError) as error:  # unknown coding line, or bytes against it
                self.skipped += 1
                log.debug("skipped %s: %s", name, error)


@dataclass
class Files:
    """Local files: text, JSON (lines or an array), CSV, TSV, Parquet or Arrow; text and JSON may be compressed."""

    paths: list[str]
    """Files, folders (all files under them), or glob patterns (``**`` for any depth)."""
    format: Literal["auto", "txt", "jsonl", "json", "csv", "tsv", "parquet", "arrow"] = "auto"
    """What the files are; auto goes by the suffix, and refuses one that it does not know."""
    text_column: str = "text"
    """Column that holds the document (not for txt)."""
    split_text: Literal["file", "line", "paragraph"] = "file"
    """What one document is in a txt file; paragraphs are parted by blank lines."""
    encoding: str = "utf-8"
    """Encoding of text, JSON and CSV files, by Python's name for it."""
    delimiter: str | None = None
    """One character between the cells of a row; null is a comma in csv files, a tab (``\\t``) in tsv files."""

    def __post_init__(self) -> None:
        self.paths = [self.paths] if isinstance(self.paths, str) else self.paths
        self.delimiter = "\t" if self.delimiter in ("\\t", "tab") else self.delimiter
        self.without_text: list[str] = []  # files of the last load that gave no document
        if self.delimiter is not None and (len(self.delimiter) != 1 or self.delimiter in '"\r\n'):
            raise ValueError(
                f"delimiter={self.delimiter!r} is wrong because cells are parted by one character; "
                "write one such as ; or | or \\t"
            )
        try:
            "".encode(self.encoding)
        except (LookupError, UnicodeError):
            raise ValueError(
                f"encoding={self.encoding} is wrong because Python has no such codec; "
                "write one such as utf-8, latin-1 or utf-16"
            ) from None

    def load(self, cache_dir: str) -> Dataset:
        """All documents in the order of the paths; bad files are reported together."""
        return write_texts(self._documents(), cache_dir)

    def stream(self) -> IterableDataset:
        from datasets import Features, IterableDataset, Value

        return IterableDataset.from_generator(
            _stream_files,
            features=Features({"text": Value("large_string")}),
            # A list in gen_kwargs is a list of shards: a resumed stream then skips whole files without reading them.
            gen_kwargs={"files": self._files(), "options": self._options()},
        )

    def fingerprint(self) -> str:
        files = [(path, format, *time_stamp(Path(path))) for path, format in self._files()]
        return hash_json([self._reading(), files])

    def content(self) -> str:
        """As ``fingerprint``, but equal for copies of the files in another folder."""
        return hash_json([self._reading(), [(form, *content_stamp(Path(path))) for path, form in self._files()]])

    def notes(self) -> list[str]:
        """What was taken from folders, and what was passed over."""
        return [f"data: {note}" for note in self._chosen().notes]

    def look(self) -> list[str] | None:
        """The documents, if all files together are small; else the head of every file is read."""
        files = self._files()
        if sum(Path(path).stat().st_size for path, _ in files) <= SMALL:
            return list(self._documents())
        end = time.monotonic() + CHECK_SECONDS
        heads = ((path, self._head(path, format)) for path, format in files if time.monotonic() < end)
        deque(_together(heads), maxlen=0)
        return None

    def _head(self, path: str, format: Format) -> Iterator[str]:
        """The first documents of a file; of one that is read as a whole, the first piece."""
        whole = (format == "txt" and self.split_text == "file") or (
            format == "json" and Path(path).stat().st_size > SMALL
        )
        return islice(decoded(path, self.encoding), 1) if whole else islice(self._read(path, format), HEAD)

    def _chosen(self) -> ChosenFiles:
        return choose_files(self.paths, None if self.format == "auto" else self.format)

    def _files(self) -> list[tuple[str, Format]]:
        """(absolute path, format), in the order of ``paths``, each file once."""
        chosen = self._chosen()
        refuse(chosen)
        return list(chosen.files.items())

    def _options(self) -> ReadOptions:
        return ReadOptions(self.text_column, self.split_text, self.encoding, self.delimiter)

    def _reading(self) -> list[str]:
        """What of the options decides about the documents; a delimiter only if one is set, as older caches know."""
        return [self.text_column, self.split_text, self.encoding, *([self.delimiter] if self.delimiter else [])]

    def _read(self, path: str, format: Format) -> Iterator[str]:
        return read_documents(path, format, self._options())

    def _documents(self) -> Iterator[str]:
        self.without_text = []
        yield from _together(((path, self._read(path, form)) for path, form in self._files()), self.without_text)


def _together(files: Iterable[tuple[str, Iterator[str]]], without_text: list[str] | None = None) -> Iterator[str]:
    """Documents of all files; problems are raised at the end, those of all files together."""
    problems: list[Any] = []
    for path, documents in files:
        some = False
        try:
            for text in documents:
                some = some or bool(text)
                yield text
        except UserError as error:
            problems += error.problems
        except OSError as error:
            problems.append(_unreadable(path, error))
        if not some and without_text is not None:
            without_text.append(path)
        if len(problems) >= MOST_PROBLEMS:
            break
    if problems:
        raise UserError(*problems)


def _unreadable(path: str, error: OSError) -> Problem:
    return Problem(path, f"cannot be read: {error.strerror}", "check its permissions")


def _stream_files(files: list[tuple[str, Format]], options: ReadOptions) -> Iterator[dict[str, str]]:
    for path, format in files:
        try:
            for text in read_documents(path, format, options):
                yield {"text": text}
        except OSError as error:
            raise UserError(_unreadable(path, error)) from None
