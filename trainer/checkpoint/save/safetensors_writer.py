"""Write the files of a distributed checkpoint from where their tensors lie.

DCP's own writer for safetensors joins a file in memory before it is written: three times its bytes, and the last copy
keeps Python's lock, so that training stands still however many cores are free. Here each tensor goes to its file by
itself, without a copy and without the lock. The files are the same: a length, a JSON header, raw bytes.
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
from ..layout import Digest, described, write_all

CODES = {dtype: code for code, dtype in DTYPES.items()}
"""Names of types in a safetensors header."""


class StreamingWriter(HuggingFaceStorageWriter):
    """DCP's storage of safetensors, every rank its own shards, without memory of its own."""

    def __init__(self, folder: Path, file_numbers: dict[str, int]) -> None:
        super().__init__(str(folder), fqn_to_index_mapping=file_numbers, save_distributed=True)
        self.written: dict[str, Any] = {}
        """The files written so far, described for the manifest."""

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
"""What goes into one file, by the tensors' names, in this order."""


def _shards(items: list[WriteItem], planner: SavePlanner) -> Shards:
    shards: Shards = {
        item.index.fqn: (item, planner.resolve_data(item).detach())  # type: ignore[union-attr]
        for item in items
    }
    # Wide types first, as the library orders them: so all are aligned.
    return {fqn: shards[fqn] for fqn in sorted(shards, key=lambda fqn: (-shards[fqn][1].itemsize, fqn))}


def _write_file(path: Path, shards: Shards) -> dict[str, Any]:
    """Write a file; its description is of what was meant to be written."""
    digest, size = Digest(), 0
    with path.open("wb", buffering=0) as file:
        for part in chain([_header(shards)], (raw_bytes(tensor) for _, tensor in shards.values())):
            write_all(file, part)
            digest.update(part)
            size += len(part)
        os.fsync(file.fileno())
    return described(size, digest)


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
    """The elements of a tensor as bytes; copied only if it lies on a GPU or in pieces."""
    return tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data
