"""Read the rows of JSON files, and keep nested lists and objects as JSON text.

In an Arrow table each column has one type. Nested objects with different keys would get null for the missing keys, and
a column could not hold a string in one row and a list in another. Conversations have both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

from ...errors import Problem, UserError
from .document_files import json_rows, kind_of
from .nested_cells import kept_text

PATHS = "data.source.paths"


def rows_of_json(files: Sequence[str], folder: str = "") -> Iterator[dict[str, Any]]:
    """The rows of all files, with the same columns in each; a column that a row lacks is None.

    Args:
        folder: name of a further column with the folder of the row's file; empty adds none.

    Raises:
        UserError: a file cannot be read, or holds something else than rows.
    """
    columns: dict[str, None] = {}
    for _, row in objects_of_json(files):
        columns.update(dict.fromkeys(row))
    for file in files:
        own = {folder: os.path.dirname(os.path.abspath(file))} if folder else {}
        for place, row in objects_of_json([file]):
            yield {**own, **{name: _cell(row.get(name), place) for name in columns}}


def objects_of_json(files: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Pairs (place, row) of all files.

    Raises:
        UserError: a file cannot be read, or holds something else than rows.
    """
    for file in files:
        for place, row in json_rows(file, "utf-8"):
            if not isinstance(row, dict):
                fix = 'write each row as an object: {"messages": [{"role": "user", "content": "..."}, ...]}'
                raise UserError(Problem(PATHS, f"{place} holds {kind_of(row)}, not an object with columns", fix))
            yield place, row


def _cell(value: Any, place: str) -> Any:
    if not isinstance(value, list | dict):
        return value
    text = kept_text(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        why = f"{place} holds half of a surrogate pair, which is no character"
        raise UserError(Problem(PATHS, why, "correct that text, or leave the row out")) from None
    return text
