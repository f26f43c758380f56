"""Read the tensors of a trireme checkpoint block by block, so that copying weights to other files needs little memory.

torch's own reader maps whole files into memory and fills whole tensors, which copying does not need. A safetensors file
is a length, a JSON header and raw bytes, and the header gives the position of each shard in its tensor. A block of rows
is therefore read from the shards into one buffer, whichever plan wrote them. Memory does not depend on the size of a
tensor, a file or the model.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ....models.json_file import parse_json
from ....models.weight_files import DTYPES
from ....parallel.strategy import Shapes

BLOCK_BYTES = 16 * 2**20
"""Bytes of a block. Larger ones are no faster, since the system reads ahead, and smaller ones stay in CPU caches."""
MOST_HEADER = 100 * 2**20
"""Bytes of the largest header that the safetensors library accepts."""


@dataclass(frozen=True)
class StoredShard:
    """A rectangular shard of a tensor in a file."""

    file: Path
    start: int
    """Byte in the file at which it begins."""
    offsets: tuple[int, ...]
    """Index in the whole tensor at which it begins."""
    shape: tuple[int, ...]


class StoredShards:
    """The shards of all tensors in the safetensors files of a folder. The constructor reads only headers.

    Raises:
        ValueError: a file is not in the safetensors format, or shards of a tensor are missing.
    """

    def __init__(self, folder: Path) -> None:
        self.pieces: dict[str, list[StoredShard]] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        self._buffer = torch.empty(0, dtype=torch.uint8)
        for file in sorted(folder.glob("*.safetensors")):
            self._add(file)
        self.shapes: Shapes = {name: (self._whole(name), self.dtypes[name]) for name in self.pieces}

    def files(self, names: list[str]) -> set[Path]:
        """Files that hold shards of these tensors."""
        return {piece.file for name in names for piece in self.pieces[name]}

    def blocks(self, names: list[str], limit: int) -> Iterator[Tensor]:
        """The elements of the tensors in order, as flat blocks of whole rows. A block is valid until the next request.

        Args:
            limit: most bytes of a block; a longer row is not divided.

        Raises:
            ValueError: a file ends too early or cannot be read.
        """
        for name in names:
            shape, dtype = self.shapes[name]
            rows, row = (shape[0], shape[1:]) if shape else (1, torch.Size())
            row_bytes = row.numel() * dtype.itemsize
            count = max(min(limit, BLOCK_BYTES) // max(row_bytes, 1), 1)
            for first in range(0, rows if row_bytes else 0, count):
                last = min(first + count, rows)
                block = self._memory((last - first) * row_bytes).view(dtype).view(last - first, *row)
                for piece in self.pieces[name]:
                    _fill(block, piece, first, last)
                yield block.flatten()

    def _memory(self, size: int) -> Tensor:
        """Memory for a block. All blocks share it, because new pages would cost as much time as the copy."""
        if self._buffer.numel() < size:
            self._buffer = torch.empty(size, dtype=torch.uint8)
        return self._buffer[:size]

    def _add(self, file: Path) -> None:
        header, begin = read_header(file)
        offsets = parse_json(header.pop("__metadata__", {}).get("DCP_SHARDING_INFO", "{}"))
        for name, entry in header.items():
            if entry["dtype"] not in DTYPES:
                raise ValueError(f"{name} in {file.name} has a type that is not supported ({entry['dtype']})")
            shape = tuple(entry["shape"])
            start = offsets[name]["saved_offsets"] if name in offsets else [0] * len(shape)
            self.dtypes[name] = DTYPES[entry["dtype"]]
            piece = StoredShard(file, begin + entry["data_offsets"][0], tuple(start), shape)
            self.pieces.setdefault(name, []).append(piece)

    def _whole(self, name: str) -> torch.Size:
        """Shape of the whole tensor; its shards must cover it."""
        pieces = self.pieces[name]
        ends = [[start + size for start, size in zip(p.offsets, p.shape, strict=True)] for p in pieces]
        shape = torch.Size(max(sizes) for sizes in zip(*ends, strict=True))
        if sum(math.prod(piece.shape) for piece in pieces) != shape.numel():
            raise ValueError(f"{name} is incomplete: some of its shards are missing")
        return shape


def read_header(file: Path) -> tuple[dict, int]:
    """The JSON header of a safetensors file, and the byte at which its data begins.

    Raises:
        ValueError: it is not in the safetensors format, or cannot be read.
    """
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > MOST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            return parse_json(stream.read(length)), 8 + length
    except (OSError, ValueError, struct.error) as error:
        raise ValueError(f"{file.name} cannot be read: {error}") from None


def _fill(block: Tensor, piece: StoredShard, first: int, last: int) -> None:
    """Copy the part of ``piece`` in rows ``first`` to ``last`` (exclusive) into ``block`` [rows, *rest]."""
    begin, *rest = piece.offsets or (0,)
    rows, *row = piece.shape or (1,)
    low, high = max(first, begin), min(last, begin + rows)
    if low >= high or not math.prod(row):
        return
    start = piece.start + (low - begin) * math.prod(row) * block.element_size()
    target = block[low - first : high - first]
    if list(target.shape[1:]) == row:
        _read(target, piece.file, start)
    else:  # the tensor is split along another dimension, so rows are contiguous in the file but not in the block
        part = torch.empty((high - low, *row), dtype=block.dtype)
        _read(part, piece.file, start)
        target[(slice(None), *(slice(at, at + size) for at, size in zip(rest, row, strict=True)))] = part


def _read(into: Tensor, file: Path, start: int) -> None:
    view = into.view(-1).view(torch.uint8).numpy().data.cast("B")
    try:
        with file.open("rb", buffering=0) as stream:
            while view:
                count = os.preadv(stream.fileno(), [view], start)
                if not count:
                    raise ValueError(f"{file.name} ends too early")
                view, start = view[count:], start + count
    except OSError as error:
        raise ValueError(f"{file.name} cannot be read: {error.strerror}") from None
