"""Find the image and audio files that rows name by path, and hash their sizes, times or contents, so that caches and
resumed runs notice when a file has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from .cache import built_once
from .content_stamp import content_stamp, hash_json, time_stamp

if TYPE_CHECKING:
    from datasets import Dataset

Stamp = TypeVar("Stamp")
AT_ONCE = 1000
"""Rows whose columns are read together."""
THREADS = 16
"""Files that are stamped at the same time, since disks of a network answer slowly."""
DIGEST = "digest.txt"


class MediaFiles:
    """The distinct files of a set of rows, in the order of the rows, as they were when this was constructed."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = tuple(dict.fromkeys(paths))
        self.times = hash_json([*zip(self.paths, _stamps(self.paths, time_stamp), strict=True)]) if self.paths else ""
        """Hash of sizes and modification times; empty if there are no files."""

    def content(self, cache: Path) -> str:
        """Hash of the files' contents, equal for copies elsewhere (``content_stamp``); empty if there are no files.

        Args:
            cache: folder of the cache, in which the hash is kept as long as no file is newer.
        """
        if not self.paths:
            return ""
        folder = cache / f"media-{self.times}"
        with built_once(folder) as scratch:
            if scratch:
                (scratch / DIGEST).write_text(hash_json(_stamps(self.paths, content_stamp)))
        return (folder / DIGEST).read_text()


def paths_in(rows: Dataset, columns: Sequence[str]) -> Iterator[str]:
    """Paths in columns that hold paths, or objects of ``bytes`` and ``path`` without bytes."""
    present = [name for name in columns if name in rows.column_names]
    if not present:
        return
    batches: Any = rows.select_columns(present).with_format("arrow")
    for table in batches.iter(AT_ONCE):
        for name in present:
            yield from filter(None, _paths(table.column(name).combine_chunks()))


def _paths(column: Any) -> list[str | None]:
    """The paths in an Arrow array; images and audio clips themselves are not read."""
    import pyarrow as pa

    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.to_pylist()
    names = [field.name for field in column.type] if pa.types.is_struct(column.type) else []
    if "path" not in names:
        return []
    paths = column.field("path")
    if "bytes" in names:
        paths = paths.filter(column.field("bytes").is_null())
    return _paths(paths)


def _stamps(paths: Sequence[str], stamp: Callable[[Path], Stamp]) -> list[Stamp | None]:
    """A stamp of each file; None of one that cannot be read, which training refuses when it reads it."""

    def of(path: str) -> Stamp | None:
        try:
            return stamp(Path(path))
        except (OSError, ValueError):  # ValueError: a text with a null character
            return None

    with ThreadPoolExecutor(THREADS) as pool:
        return [*pool.map(of, paths)]
