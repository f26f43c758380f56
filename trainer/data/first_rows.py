"""Read rows of JSON, Parquet or Arrow files for the checks of ``trireme check``: all rows if the files are small, else
at most the first 20 rows of the first file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from .chat.media_forms import FOLDER
from .file_columns import LARGEST_ARRAY
from .file_formats import Format
from .json_rows import objects_of_json

SMALL = 8 << 20
"""Total bytes of files up to which all rows are read."""
HEAD = 20
"""Number of rows that are read from larger files."""


def first_rows(files: Sequence[str], format: Format) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs (place, row); none of formats whose values only the whole table tells (csv, tsv, txt). Rows have a further
    column ``FOLDER``: the folder of their file.

    Raises:
        UserError: a file of JSON cannot be read, or holds something else than rows.
    """
    sizes = [Path(file).stat().st_size for file in files]
    if sum(sizes) <= SMALL:
        yield from _rows(files, format)
    elif format != "json" or sizes[0] <= LARGEST_ARRAY:
        yield from islice(_rows(files[:1], format), HEAD)


def _rows(files: Sequence[str], format: Format) -> Iterator[tuple[str, dict[str, Any]]]:
    for file in files:
        folder = {FOLDER: str(Path(file).resolve().parent)}
        if format in ("json", "jsonl"):
            yield from ((place, {**folder, **row}) for place, row in objects_of_json([file]))
        elif format in ("parquet", "arrow"):
            rows = (row for batch in _batches(file, format) for row in batch.to_pylist())
            yield from ((f"{Path(file).name}, row {number}", {**folder, **row}) for number, row in enumerate(rows, 1))


def _batches(file: str, format: Format) -> Iterator[Any]:
    """Record batches of a table; none if it cannot be read, which is refused when its rows are read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if format == "parquet":
            yield from pq.ParquetFile(file).iter_batches(HEAD)
            return
        with pa.memory_map(file) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            if not is_file:
                yield from pa.ipc.open_stream(source)
                return
            reader = pa.ipc.open_file(source)
            yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
    except (pa.ArrowException, OSError):
        return
