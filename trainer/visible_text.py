"""Replace invisible characters, such as terminal escape codes, by visible symbols in texts that are to be shown.

Such characters could otherwise control the terminal, or reverse the direction of a line (direction marks); unpaired
surrogates could not be written at all.
"""

from __future__ import annotations

_NAMED = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
"""Control characters -> their pictures in Unicode."""
_CODES = [
    *range(0x80, 0xA0),
    0x061C,
    0x200B,
    0x200E,
    0x200F,
    *range(0x2028, 0x202F),
    *range(0x2060, 0x2070),
    *range(0xD800, 0xE000),
    0xFEFF,
]
"""Further controls, line ends, invisible characters, marks of direction, and surrogates, which no file can hold."""
_VISIBLE = {**_NAMED, **{code: f"\\u{code:04x}" for code in _CODES}}


def visible(text: str) -> str:
    """``text`` with a visible sign in place of each control or invisible character listed above; line feeds and tabs
    stay."""
    return text.translate(_VISIBLE)
