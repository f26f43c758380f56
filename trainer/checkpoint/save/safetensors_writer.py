"""Write the safetensors files of a distributed checkpoint (DCP) directly from the memory of their tensors.

DCP's own writer first assembles each file in memory. This takes three times the file's size, and the last copy holds
Python's global lock, so that training waits even if cores are free. Here each tensor is written to its file without a
copy and without holding the lock. The file format is the same: a length, a JSON header and raw bytes.
"""

from __future__ import annotations

import json
import os
import struct
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.checkpoint._hf_utils import (
    CUSTOM_METADATA_KEY,
    DCP_VERSION_KEY,
    FORMAT_KEY,
    FORMAT_VALUE,
    HF_DCP_VERSION,
    SAVED_OFFSETS_KEY,
    _gen_file_name,
)
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from ....models.weight_files import DTYPES
from ..layout import Digest, manifest_entry, write_all

CODES = {dtype: code for code, dtype in DTYPES.items()}
"""The name in safetensors headers of each torch type."""


class StreamingWriter(HuggingFaceStorageWriter):
    """DCP's storage of safetensors, in which every rank writes its own shards without further memory."""

    def __init__(self, folder: Path, file_numbers: dict[str, int]) -> None:
        super().__init__(str(folder), fqn_to_index_mapping=file_numbers, save_distributed=True)
        self.written: dict[str, Any] = {}
        """Manifest entries of the files written so far."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results, numbers = [], self.fqn_to_index_mapping or {}
        for number, items in self._split_by_storage_plan(numbers, plan.items).items():
            name = _gen_file_name(number, max(numbers.values()), plan.storage_data["shard_index"])
            shards = _shards(items, planner)
            self.written[name] = _write_file(Path(self.path) / name, shards)
            results += [WriteResult(item.index, tensor.nbytes, name) for item, tensor in shards.values()]
        done: Future[list[WriteResult]] = Future()
        done.set_result(results)
        return done


Shards = dict[str, tuple[WriteItem, Tensor]]
"""The shards of one file, by the tensors' names and in the order of the file."""


def _shards(items: list[WriteItem], planner: SavePlanner) -> Shards:
    shards: Shards = {
        item.index.fqn: (item, planner.resolve_data(item).detach())  # type: ignore[union-attr]
        for item in items
    }
    # Wide types first, as in the safetensors library, so that all tensors are aligned.
    return {fqn: shards[fqn] for fqn in sorted(shards, key=lambda fqn: (-shards[fqn][1].itemsize, fqn))}


def _write_file(path: Path, shards: Shards) -> dict[str, Any]:
    """Write a file and return its manifest entry, computed from the data in memory."""
    digest, size = Digest(), 0
    with path.open("wb", buffering=0) as file:
        for part in chain([_header(shards)], (raw_bytes(tensor) for _, tensor in shards.values())):
            write_all(file, part)
            digest.update(part)
            size += len(part)
        os.fsync(file.fileno())
    return manifest_entry(size, digest)


def _header(shards: Shards) -> bytes:
    offsets = {name: {SAVED_OFFSETS_KEY: list(item.tensor_data.chunk.offsets)} for name, (item, _) in shards.items()}  # type: ignore[union-attr]
    about = {CUSTOM_METADATA_KEY: json.dumps(offsets), DCP_VERSION_KEY: str(HF_DCP_VERSION), FORMAT_KEY: FORMAT_VALUE}
    header: dict[str, Any] = {"__metadata__": about}
    end = 0
    for name, (_, tensor) in shards.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def raw_bytes(tensor: Tensor) -> memoryview:
    """The elements of a tensor as bytes; copied only if it is on a GPU or not contiguous."""
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data
