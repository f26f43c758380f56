"""Release the memory pages of memory-mapped checkpoint files, since pages that were read count as process memory."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

DONTNEED = 4
"""MADV_DONTNEED of Linux: drops pages; the next access reads them from the file again."""


def let_go_of_files(folder: Path) -> None:
    """Drop the pages of all mapped files in ``folder``; the mappings stay usable.

    Changes made through a mapping would be lost, so this is for files that are only read.
    """
    if sys.platform != "linux":
        return
    inside = f"{folder.resolve()}/"
    libc = ctypes.CDLL(None, use_errno=True)
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, rest = line.partition(" ")
        if inside in rest and rest[rest.index("/") :].startswith(inside):
            start, end = (int(part, 16) for part in span.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONTNEED)
