"""Hash data files and settings, and read files' time stamps, so that caches and resumed runs notice when data has
changed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

ENDS = 1 << 16
"""Bytes of a file's head and tail that represent its content."""


def hash_json(value: Any) -> str:
    """A hash of 32 hexadecimal digits of a value that JSON can hold."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def time_stamp(path: Path) -> tuple[int, int]:
    """Size and modification time: costs one system call, but differs for a copy."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def content_stamp(path: Path) -> tuple[int, str]:
    """Size, and a hash of head and tail: equal for a copy, and cheap for files of any size."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        ends = file.read(ENDS)
        file.seek(max(size - ENDS, 0))
        ends += file.read(ENDS)
    return size, hashlib.blake2b(ends, digest_size=16).hexdigest()
