"""Read a whole file, or its last bytes, and refuse folders, pipes and devices. Reading a pipe or a device could wait
forever, and another user may have put one into a run folder.
"""

from __future__ import annotations

import errno
from pathlib import Path


def read_regular(path: Path, most: int | None = None) -> bytes:
    """The content of a file, or of its last ``most`` bytes.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    size = path.stat().st_size
    if not path.is_file():
        raise OSError(errno.EINVAL, "it is a folder" if path.is_dir() else "it is a pipe or a device")
    with path.open("rb") as file:
        if most is not None:
            file.seek(max(size - most, 0))
        return file.read()
