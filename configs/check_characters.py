"""Find characters in a recipe's values that file names or UTF-8 files cannot hold: NUL and lone surrogates."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import Problem


def unreadable(raw: Any, path: str = "") -> Iterator[Problem]:
    """Problems of values that contain such characters, at any depth."""
    items = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, value in items:
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, str) and ("\0" in value or (not value.isascii() and not _encodes(value))):
            yield Problem(where, "contains a character that cannot be written into a file", "leave it out", value)
        else:
            yield from unreadable(value, where)


def _encodes(text: str) -> bool:
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False
