"""Write files of predictions, with one row per sample: JSON lines or Parquet, by the file's suffix."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from .folders import check_new_file

SUFFIXES = (".jsonl", ".parquet")
ROWS_AT_ONCE = 1024
"""Rows of a Parquet file that are written together."""
FIRST = "index"
"""The first column of every file of predictions: the place of the sample in its set."""
Rows = Callable[[], Iterator[dict[str, Any]]]
"""A function that returns a new iterator over all rows."""


def check_out(out: str) -> None:
    """Refuse a file of an unknown kind, in a folder that cannot be written, or one that holds other rows already.

    Raises:
        UserError: the file is not usable.
    """
    path = check_new_file(out, "--out", "predictions.jsonl")
    if path.suffix not in SUFFIXES:
        fix = f"end it with {' or '.join(SUFFIXES)}"
        raise UserError(Problem("--out", "is not a kind of file that predictions are written to", fix, out))
    if path.is_file() and not _may_be_replaced(path):
        raise UserError(Problem("--out", "is there already, and does not hold predictions", "give another file", out))


def _may_be_replaced(path: Path) -> bool:
    """Whether a file is empty, or its rows begin as those of predictions do."""
    try:
        if not path.stat().st_size:
            return True
        if path.suffix == ".parquet":
            from pyarrow import parquet

            row = next(parquet.ParquetFile(path).iter_batches(batch_size=1)).to_pylist()[0]
        else:
            with open(path, encoding="utf-8") as file:
                row = json.loads(file.readline())
        return isinstance(row, dict) and next(iter(row.items()), None) == (FIRST, 0)
    except (OSError, ValueError, StopIteration):  # pyarrow's errors are ValueErrors too
        return False


def write_rows(out: str, rows: Rows) -> None:
    """Write all rows; an existing file is replaced when the new one is complete.

    Raises:
        UserError: the file cannot be written.
    """
    path = Path(os.path.expanduser(out))
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        (_write_parquet if path.suffix == ".parquet" else _write_lines)(partial, rows)
        os.replace(partial, path)
    except OSError as error:
        raise UserError(
            Problem("--out", f"cannot be written: {error.strerror or error}", "give another path", out)
        ) from None
    finally:
        partial.unlink(missing_ok=True)


def _write_lines(path: Path, rows: Rows) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows())


def _write_parquet(path: Path, rows: Rows) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    # A column may hold nothing, or fewer fields, in some of the parts, so the types of all are joined first.
    schemas = (pa.Table.from_pylist(part).schema for part in _parts(rows))
    schema = pa.unify_schemas(list(dict.fromkeys(schemas)), promote_options="permissive")
    with parquet.ParquetWriter(path, schema) as writer:
        for part in _parts(rows):
            writer.write_table(pa.Table.from_pylist(part, schema=schema))


def _parts(rows: Rows) -> Iterator[list[dict[str, Any]]]:
    left = rows()
    while part := list(islice(left, ROWS_AT_ONCE)):
        yield part
