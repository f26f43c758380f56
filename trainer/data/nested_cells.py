"""Store JSON lists and objects as text in a column, with a hidden mark by which they are recognised later. Without the
mark, they could not be told from other texts that happen to be JSON.

A column of an Arrow table has one type, so lists and objects of JSON files are kept as texts. The mark is white space
after the first bracket: JSON parsers ignore it, and no JSON writer puts it there.
"""

from __future__ import annotations

import json
from typing import Any

MARK = "\t \t"
"""White space after the first bracket of a list or object that was kept as text."""


def kept_text(value: list[Any] | dict[str, Any]) -> str:
    """The JSON text of a list or object, with the mark."""
    text = json.dumps(value, ensure_ascii=False)
    return text[0] + MARK + text[1:]


def is_kept(text: str) -> bool:
    """Whether a text was a list or an object in its file."""
    return text.startswith(MARK, 1) and text[0] in "[{"
