"""Find the names of the columns in a local data file (JSON, CSV, Parquet and others), unless this would take long."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from .document_files import json_rows
from .file_formats import Format
from .file_text import decoded, lines

LARGEST_ARRAY = 16 * 2**20
"""Bytes of a JSON array beyond which its rows are not looked at, since it is read as a whole."""


def column_names(path: str, format: Format, delimiter: str) -> list[str] | None:
    """Names of the columns of the first row; None if reading them would take long, or there is no row.

    Raises:
        UserError: the file is not what its format says.
    """
    if format == "txt":
        return ["text"]
    if format in ("csv", "tsv"):
        return next(_cells(path, delimiter), None)
    if format in ("jsonl", "json"):
        if format == "json" and Path(path).stat().st_size > LARGEST_ARRAY:
            return None
        _, row = next(json_rows(path, "utf-8"), ("", None))
        return list(row) if isinstance(row, dict) else None
    return _schema(path, format)


def _cells(path: str, delimiter: str) -> Iterator[list[str]]:
    return (cells for cells in csv.reader(lines(decoded(path, "utf-8")), delimiter=delimiter) if cells)


def _schema(path: str, format: Format) -> list[str] | None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if format == "parquet":
            return list(pq.read_schema(path).names)
        with pa.memory_map(path) as source:
            is_file = source.read(6) == b"ARROW1"
            source.seek(0)
            reader = pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)
            return list(reader.schema.names)
    except (pa.ArrowException, OSError):  # refused with its reason when the rows are read
        return None
