"""Write the tensors of a checkpoint through torch's distributed checkpoint (DCP), in the safetensors format.

DCP's own file format keeps its metadata in a pickle. DCP's Hugging Face storage, which is used here, contains no
pickle, has the same plain tensor names, and can be opened by every tool that reads safetensors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from ..dcp_errors import failed_with, failure_message, quiet
from ..group_by_bytes import split_by_bytes
from .safetensors_writer import StreamingWriter

FILE_BYTES = 512 * 2**20
"""Largest file of several tensors; a larger tensor has a file of its own."""


def write_tensors(
    tensors: dict[str, Tensor], folder: Path, distributed: bool, group: dist.ProcessGroup | None = None
) -> dict[str, Any]:
    """Write this rank's shards; replicated tensors are written once. A collective call if ``distributed``.

    Args:
        group: process group of all ranks for the communication; None takes the one that training uses.

    Returns:
        Manifest entries of the files that this rank wrote.

    Raises:
        OSError: a rank could not write; every rank raises the first error.
    """
    writer = StreamingWriter(folder, _file_numbers(_all_sizes(tensors, distributed, group)))
    try:
        with quiet():
            dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=not distributed)
    except CheckpointException as failure:
        kind = OSError if isinstance(failed_with(failure)[1], OSError) else RuntimeError
        raise kind(failure_message(failure)) from None
    return writer.written


def _all_sizes(tensors: dict[str, Tensor], distributed: bool, group: dist.ProcessGroup | None) -> dict[str, int]:
    """Bytes of the tensors of all ranks by name. Pipeline stages have different tensors, but share file numbers."""
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    if not distributed:
        return sizes
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, sizes, group=group)
    return {name: size for part in gathered for name, size in part.items()}


def _file_numbers(sizes: dict[str, int]) -> dict[str, int]:
    files = split_by_bytes(sizes, FILE_BYTES)
    return {name: number for number, names in enumerate(files, start=1) for name in names}
