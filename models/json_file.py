"""Read JSON from untrusted files and strings. Too deeply nested JSON raises ``ValueError``, like any other bad JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path, **options: Any) -> Any:
    """The content of a JSON file.

    Args:
        options: those of ``json.loads``.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or brackets stand in brackets deeper than Python can follow.
    """
    return parse_json(path.read_bytes(), **options)


def object_in(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if the file cannot be read, or holds something else."""
    try:
        found = read_json(path)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def parse_json(text: str | bytes, **options: Any) -> Any:
    """The content of a JSON text.

    Args:
        options: those of ``json.loads``.

    Raises:
        ValueError: it is no JSON, or brackets stand in brackets deeper than Python can follow.
    """
    try:
        return json.loads(text, **options)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def reason(error: json.JSONDecodeError) -> str:
    """Why a text is not JSON; Python's words, without the ``at`` that it puts before a position."""
    return f"{error.msg[0].lower()}{error.msg[1:]}".removesuffix(" at")
