"""Write an export's safetensors files when all tensor sizes are known in advance, block by block.

Tensors have the names that ``transformers`` uses. Each file is a length, a JSON header and raw bytes.
"""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ....parallel.strategy import Shapes
from ..layout import write_all
from ..load.block_reader import BLOCK_BYTES
from ..save.safetensors_writer import CODES, raw_bytes

log = logging.getLogger("trireme.export")


def write_shards(
    folder: Path,
    shards: Sequence[Shapes],
    blocks: Iterable[Iterable[Tensor]],
    check: Callable[[], None],
    stem: str = "model",
) -> None:
    """Write one file for each of ``shards``, and the index if there are several.

    Args:
        shards: for each file, shape and type to write of its tensors, in order.
        blocks: for each file, the elements of its tensors in order, as flat blocks; no block spans two tensors.
        check: called between blocks.
        stem: beginning of the names of the files.

    Raises:
        ValueError: a tensor has fewer or more elements than its shape in ``shards``.
        OSError: a file cannot be written.
    """
    count = len(shards)
    names = [f"{stem}-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    files = names if count > 1 else [f"{stem}.safetensors"]
    total = 0
    for file, tensors, elements in zip(files, shards, blocks, strict=True):
        total += _write(folder / file, tensors, elements, check)
    if count > 1:
        weight_map = {name: file for file, tensors in zip(files, shards, strict=True) for name in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2))


def _write(path: Path, tensors: Shapes, blocks: Iterable[Tensor], check: Callable[[], None]) -> int:
    """Write one file and return the bytes of its tensors."""
    header, expected = _header(tensors)
    with path.open("wb", buffering=0) as stream:
        write_all(stream, header)
        flowing = iter(blocks)
        for name, (shape, dtype) in tensors.items():
            left = shape.numel()
            while left > 0:
                block = next(flowing, None)
                if block is None or len(block) > left:
                    raise ValueError(f"{name} has another number of elements than {tuple(shape)}")
                left -= len(block)
                for part in block.split(BLOCK_BYTES // block.element_size()):
                    check()
                    write_all(stream, raw_bytes(_converted(part, dtype, name)))
    return expected


def _header(tensors: Shapes) -> tuple[bytes, int]:
    entries: dict[str, dict] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (shape, dtype) in tensors.items():
        end = offset + shape.numel() * dtype.itemsize
        entries[name] = {"dtype": CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(entries, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)  # so that the data is aligned
    return struct.pack("<Q", len(encoded)) + encoded, offset


def _converted(part: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    converted = part.to(dtype)
    if dtype == torch.float16 and part.dtype != dtype and not converted.isfinite().all() and part.isfinite().all():
        log.warning("%s holds values beyond the range of fp16, which become infinite; use bf16 or fp32", name)
    return converted
