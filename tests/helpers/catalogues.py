"""Write gettext message catalogues (``.mo`` files) in the format of GNU msgfmt."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path


def write_catalogue(path: Path, messages: Mapping[str, str], order: str = "<") -> Path:
    """Write ``messages`` and their translations to one file; ``order`` is the byte order, as ``struct`` writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [[part.encode() for part in side] for side in zip(*messages.items(), strict=True)]
    start, tables, strings = 28 + 16 * len(messages), b"", b""
    for side in texts:
        for text in side:
            tables += struct.pack(f"{order}2I", len(text), start + len(strings))
            strings += text + b"\0"
    head = struct.pack(f"{order}7I", 0x950412DE, 0, len(messages), 28, 28 + 8 * len(messages), 0, 0)
    path.write_bytes(head + tables + strings)
    return path
