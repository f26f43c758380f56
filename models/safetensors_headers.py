"""Read the headers of safetensors files (names, types and shapes of their tensors) as JSON, without importing torch."""

from __future__ import annotations

import struct
from pathlib import Path

from .json_file import parse_json

LARGEST = 100 * 2**20
"""Bytes of the largest header that is read; the format allows a little less, 100,000,000."""


def read_head(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type (``BF16``) and shape of every tensor in ``file``, by name.

    Raises:
        ValueError: the file is not in the safetensors format, or its end is missing.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > LARGEST:
                raise ValueError("its header is too long")
            entries = parse_json(stream.read(length))
            size = stream.seek(0, 2)
        entries.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
        if 8 + length + end > size:
            raise ValueError(f"its header announces {8 + length + end} bytes, but the file has {size}")
        return {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in entries.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None
