"""Files that are mapped into memory count as memory of the process once they were read; this gives them back."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

DONTNEED = 4
"""MADV_DONTNEED of Linux: pages go; whoever looks at them again finds what is in the file."""


def let_go_of_files(folder: Path) -> None:
    """Drop the pages of all files in ``folder`` that are mapped; what is mapped stays usable.

    Only for files that nobody changes through their mapping: such changes would be lost.
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
