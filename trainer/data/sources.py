"""Data sources of documents: Python files, local files, and the Hugging Face Hub.

A recipe names a source by ``_target_`` in ``data.source``. A source is a dataclass with three methods: ``load`` returns
all documents as an Arrow data set with a column ``text``, ``stream`` reads the same documents on demand, and
``fingerprint`` returns a string that changes with the content and names the cache entry. A recipe may name a user's own
class with these methods (docs/extending.md); ``document_source.py`` checks it. Only ``Hub`` may use the network.
"""

from __future__ import annotations

import logging
import os
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
from .file_text import decoded, one_delimiter, refuse_encoding
from .hub_source import Hub

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["Files", "Hub", "PythonSources", "Source"]
log = logging.getLogger("trireme.data")
MOST_PROBLEMS = 20
"""Most bad files that are reported together; more have probably the same cause."""
SMALL = 8 << 20
"""Total bytes up to which a check reads all files completely."""
HEAD = 20
"""Documents that a check reads of a larger file."""
CHECK_SECONDS = 1.0
"""Time limit of a check for reading heads of files; for the remaining files it only checks that they exist."""


class Source(Protocol):
    """The interface of ``data.source``."""

    def load(self, cache_dir: str) -> Dataset:
        """All documents, with a column ``text``; ``cache_dir`` is scratch space that is deleted after preparation."""
        ...

    def stream(self) -> IterableDataset:
        """The same documents in the same order, read on demand."""
        ...

    def fingerprint(self) -> str:
        """A string that changes when the documents change."""
        ...

    # Optional methods: ``look() -> list[str] | None`` refuses problems that show quickly, and returns the documents if
    # they are few; ``content() -> str`` is a fingerprint that is equal for copies elsewhere; ``notes() -> list[str]``
    # are lines for the log. Optional attribute: ``without_text``, names of files without a document in the last load.


@dataclass
class PythonSources:
    """Python source files: by default the standard library of the running Python, which every machine has."""

    roots: list[str] | None = None
    """Folders to search; null takes the standard library."""
    exclude: list[str] = field(default_factory=lambda: ["site-packages", "dist-packages", "__pycache__"])
    """Names of folders to leave out."""

    def __post_init__(self) -> None:
        self.roots = [self.roots] if isinstance(self.roots, str) else self.roots
        self.exclude = [self.exclude] if isinstance(self.exclude, str) else self.exclude
        self.skipped = 0  # files of the last load that could not be decoded

    def load(self, cache_dir: str) -> Dataset:
        """One document per file, decoded by PEP 263; files that cannot be decoded are skipped and counted."""
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
        """Refuse folders that do not exist, or hold no Python files."""
        if not self._files():
            where = ", ".join(self.roots or ["the standard library"])
            raise UserError(
                Problem("data.source.roots", "holds no .py files", "name a folder of Python sources", where)
            )

    def content(self) -> str:
        return hash_json([(name, *content_stamp(path)) for name, path in self._files()])

    def _files(self) -> list[tuple[str, Path]]:
        """Pairs (path under its root, path), sorted, so that the order is the same on every file system."""
        roots = self.roots if self.roots is not None else [sysconfig.get_paths()["stdlib"]]
        missing = [root for root in roots if not os.path.isdir(os.path.expanduser(root))]
        if missing:
            raise UserError(
                *(
                    Problem("data.source.roots", "there is no such folder", "name an existing folder", root)
                    for root in missing
                )
            )
        excluded, files = set(self.exclude), []
        for root in (Path(os.path.expanduser(root)) for root in roots):
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
    """Format of the files; auto goes by the suffix, and refuses unknown ones."""
    text_column: str = "text"
    """Column that holds the document (not for txt)."""
    split_text: Literal["file", "line", "paragraph"] = "file"
    """Part of a txt file that is one document; paragraphs are separated by blank lines."""
    encoding: str = "utf-8"
    """Encoding of text, JSON and CSV files, by its name in Python."""
    delimiter: str | None = None
    """Character between the cells of a row; null takes a comma in csv files, a tab (``\\t``) in tsv files."""

    def __post_init__(self) -> None:
        self.paths = [self.paths] if isinstance(self.paths, str) else self.paths
        self.delimiter = one_delimiter(self.delimiter)
        self.without_text: list[str] = []  # files of the last load that gave no document
        refuse_encoding(self.encoding)

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
        """Like ``fingerprint``, but equal for copies of the files in another folder."""
        return hash_json([self._reading(), [(form, *content_stamp(Path(path))) for path, form in self._files()]])

    def notes(self) -> list[str]:
        """Lines on files that were taken from folders, and files that were skipped."""
        return [f"data: {note}" for note in self._chosen().notes]

    def look(self) -> list[str] | None:
        """Read all files and return the documents if they are small together; otherwise read the head of every file."""
        files = self._files()
        if sum(Path(path).stat().st_size for path, _ in files) <= SMALL:
            return list(self._documents())
        end = time.monotonic() + CHECK_SECONDS
        heads = ((path, self._head(path, format)) for path, format in files if time.monotonic() < end)
        deque(_together(heads), maxlen=0)
        return None

    def _head(self, path: str, format: Format) -> Iterator[str]:
        """The first documents of a file; the first chunk if the whole file is one document or one JSON array."""
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
        """Options that change the documents; a delimiter only if it is set, so that older caches stay valid."""
        return [self.text_column, self.split_text, self.encoding, *([self.delimiter] if self.delimiter else [])]

    def _read(self, path: str, format: Format) -> Iterator[str]:
        return read_documents(path, format, self._options())

    def _documents(self) -> Iterator[str]:
        self.without_text = []
        yield from _together(((path, self._read(path, form)) for path, form in self._files()), self.without_text)


def _together(files: Iterable[tuple[str, Iterator[str]]], without_text: list[str] | None = None) -> Iterator[str]:
    """Documents of all files; the problems of all files are raised together at the end."""
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
