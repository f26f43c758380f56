"""Where documents come from. A recipe chooses a source by ``_target_`` in ``data.source``.

A source is a dataclass with ``load`` (all documents as an Arrow data set with a column ``text``), ``stream`` (the
same, read as it goes) and ``fingerprint`` (a string that changes with the content and names the cached work).
A user's own class with these three takes part by its import path. Only ``Hub`` may touch the network.
"""

from __future__ import annotations

import glob
import hashlib
import json
import logging
import sysconfig
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...errors import Problem, UserError
from .document_files import Format, column_problem, read_documents

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

log = logging.getLogger("trireme.data")
SUFFIXES: dict[str, Format] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".parquet": "parquet",
    ".arrow": "arrow",
}
MOST_PROBLEMS = 20
"""Bad files reported together; after so many there is one cause behind them."""


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


@dataclass
class PythonSources:
    """Python source files: by default the standard library of the running Python, which every machine has."""

    roots: list[str] | None = None
    """Folders to search; null is the standard library."""
    exclude: list[str] = field(default_factory=lambda: ["site-packages", "dist-packages", "__pycache__"])
    """Names of folders that are left out."""

    def __post_init__(self) -> None:
        self.skipped = 0  # files of the last load that could not be decoded

    def load(self, cache_dir: str) -> Dataset:
        """One document per file, decoded as PEP 263 says; files that cannot be decoded are skipped and counted."""
        self.skipped = 0
        return _write_texts(self._documents(), cache_dir)

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
        return _hash([(name, *_stamp(path)) for name, path in self._files()])

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
    """Local files: text, JSON (lines or an array), CSV, Parquet or Arrow."""

    paths: list[str]
    """Files, folders (all files under them), or glob patterns (``**`` for any depth)."""
    format: Literal["auto", "txt", "jsonl", "json", "csv", "parquet", "arrow"] = "auto"
    """What the files are; auto goes by the suffix, and takes an unknown one for plain text."""
    text_column: str = "text"
    """Column that holds the document (not for txt)."""
    split_text: Literal["file", "line", "paragraph"] = "file"
    """What one document is in a txt file; paragraphs are parted by blank lines."""
    encoding: str = "utf-8"
    """Encoding of text, JSON and CSV files, by Python's name for it."""

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(
                f"encoding={self.encoding} is wrong because Python has no such codec; "
                "write one such as utf-8, latin-1 or utf-16"
            ) from None

    def load(self, cache_dir: str) -> Dataset:
        """All documents in the order of the paths; bad files are reported together."""
        return _write_texts(self._documents(), cache_dir)

    def stream(self) -> IterableDataset:
        from datasets import Features, IterableDataset, Value

        options = {"text_column": self.text_column, "split_text": self.split_text, "encoding": self.encoding}
        return IterableDataset.from_generator(
            _stream_files,
            features=Features({"text": Value("large_string")}),
            # A list in gen_kwargs is a list of shards: a resumed stream then skips whole files without reading them.
            gen_kwargs={"files": self._files(), "options": options},
        )

    def fingerprint(self) -> str:
        options = [self.text_column, self.split_text, self.encoding]
        return _hash([options, [(path, format, *_stamp(Path(path))) for path, format in self._files()]])

    def _files(self) -> list[tuple[str, Format]]:
        """(absolute path, format), in the order of ``paths``, each file once."""
        files: dict[str, Format] = {}
        missing = []
        for pattern in self.paths:
            found = _expand(pattern)
            if not found:
                missing.append(
                    Problem(
                        "data.source.paths",
                        "no file there",
                        "give an existing file, folder or pattern (relative to the folder the command runs in)",
                        pattern,
                    )
                )
            for path in found:
                suffix = SUFFIXES.get(path.suffix.lower(), "txt")
                files[str(path.absolute())] = suffix if self.format == "auto" else self.format
        if not self.paths:
            missing.append(Problem("data.source.paths", "no path is given", "name a file, folder or pattern", []))
        if missing:
            raise UserError(*missing)
        return list(files.items())

    def _documents(self) -> Iterator[str]:
        problems: list[Any] = []
        for path, format in self._files():
            try:
                yield from read_documents(
                    path, format, text_column=self.text_column, split_text=self.split_text, encoding=self.encoding
                )
            except UserError as error:
                problems += error.problems
            except OSError as error:
                problems.append(Problem(path, f"cannot be read: {error.strerror}", "check its permissions"))
            if len(problems) >= MOST_PROBLEMS:
                break
        if problems:
            raise UserError(*problems)


@dataclass
class Hub:
    """A data set of the Hugging Face hub (or a local folder in its layout)."""

    path: str
    """Repository, such as ``roneneldan/TinyStories``, or a local folder of data files."""
    name: str | None = None
    """Configuration of the data set."""
    split: str = "train"
    """Split, also a slice such as ``train[:10%]``."""
    text_column: str = "text"
    """Column that holds the document."""
    revision: str | None = None
    """Commit, tag or branch; with a commit nothing needs to be asked from the hub once it is prepared."""

    def load(self, cache_dir: str) -> Dataset:
        """Downloads go to the cache of `datasets` (``HF_HOME``), not to ``cache_dir``: other projects share them."""
        data = self._load(streaming=False)
        if self.text_column not in data.column_names:
            raise UserError(column_problem(f"data set {self.path!r}", self.text_column, data.column_names))
        return data.select_columns([self.text_column]).rename_column(self.text_column, "text")

    def stream(self) -> IterableDataset:
        data = self._load(streaming=True)
        if data.column_names is not None and self.text_column not in data.column_names:
            raise UserError(column_problem(f"data set {self.path!r}", self.text_column, data.column_names))
        return (
            data
            if self.text_column == "text"
            else data.select_columns([self.text_column]).rename_column(self.text_column, "text")
        )

    def fingerprint(self) -> str:
        folder = Path(self.path)
        content: Any = self._commit()
        if folder.is_dir():
            content = [(str(path), *_stamp(path)) for path in sorted(folder.rglob("*")) if path.is_file()]
        return _hash([self.path, self.name, self.split, self.text_column, content])

    def _commit(self) -> str:
        """The commit that the revision stands for; without a network, the newest that is in the local cache."""
        from huggingface_hub import HfApi, snapshot_download
        from huggingface_hub.utils import HfHubHTTPError

        revision = self.revision
        if revision and len(revision) == 40 and all(c in "0123456789abcdef" for c in revision):
            return revision
        try:
            return HfApi().dataset_info(self.path, revision=revision, timeout=10).sha or "unknown"
        except (OSError, HfHubHTTPError, ValueError) as error:
            log.info("the hub does not answer for %s (%s); going by the local cache", self.path, type(error).__name__)
        try:
            cached = snapshot_download(self.path, repo_type="dataset", revision=revision, local_files_only=True)
            return Path(cached).name
        except (OSError, ValueError):
            return "unknown"

    def _load(self, streaming: bool) -> Any:
        from datasets import load_dataset

        try:
            return load_dataset(self.path, self.name, split=self.split, revision=self.revision, streaming=streaming)
        except (OSError, ValueError, RuntimeError) as error:  # not found, no network, no such configuration or split
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(
                Problem(
                    "data.source.path",
                    f"cannot be loaded: {reason}",
                    "check path, name, split and revision of data.source, the network, and HF_TOKEN "
                    "for a gated data set",
                    self.path,
                )
            ) from error


def _stream_files(files: list[tuple[str, Format]], options: dict[str, Any]) -> Iterator[dict[str, str]]:
    for path, format in files:
        for text in read_documents(path, format, **options):
            yield {"text": text}


def _expand(pattern: str) -> list[Path]:
    """Files that a path, folder or pattern stands for, sorted; hidden ones only if named."""
    path = Path(pattern).expanduser()
    if path.is_file():
        return [path]
    found = path.rglob("*") if path.is_dir() else (Path(name) for name in glob.glob(str(path), recursive=True))
    if path.is_dir():
        found = (file for file in found if not any(part.startswith(".") for part in file.relative_to(path).parts))
    return sorted(file for file in found if file.is_file())


def _write_texts(texts: Iterable[str], cache_dir: str) -> Dataset:
    """Write texts into an Arrow file a few MiB at a time, and open it memory-mapped."""
    import pyarrow as pa
    from datasets import Dataset

    schema = pa.schema([("text", pa.large_string())])
    path = Path(cache_dir) / "documents.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        pending: list[str] = []
        size = 0
        for text in texts:
            pending.append(text)
            size += len(text)
            if size > 1 << 23 or len(pending) >= 10_000:
                writer.write_batch(pa.record_batch([pa.array(pending, pa.large_string())], schema=schema))
                pending, size = [], 0
        writer.write_batch(pa.record_batch([pa.array(pending, pa.large_string())], schema=schema))
    return Dataset.from_file(str(path))


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change: a content check that costs one system call."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()
