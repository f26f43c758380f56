"""Keep lists and objects as JSON text in a column, with a mark that tells them from texts that happen to be JSON.

A column of an Arrow table has one type, so lists and objects of JSON files are kept as texts. White space that no
writer of JSON puts there stands behind their first bracket; to JSON it means nothing.
"""

from __future__ import annotations

import json
from typing import Any

MARK = "\t \t"
"""What stands behind the first bracket of a list or object that was kept as text."""


def kept_text(value: list[Any] | dict[str, Any]) -> str:
    """The JSON text of a list or object, with the mark."""
    text = json.dumps(value, ensure_ascii=False)
    return text[0] + MARK + text[1:]


def is_kept(text: str) -> bool:
    """Whether a text was a list or an object in its file."""
    return text.startswith(MARK, 1) and text[0] in "[{"
