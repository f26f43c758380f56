"""Tensors of a checkpoint through torch's distributed checkpoint (DCP), stored as safetensors.

DCP's own file format keeps its metadata in a pickle; its Hugging Face storage does not, holds the same plain names,
and can be opened by anything that reads safetensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException

from .save.safetensors_writer import StreamingWriter

FILE_BYTES = 512 * 2**20
"""Largest file of several tensors; a larger tensor has a file of its own."""


def write_tensors(
    tensors: dict[str, Tensor], folder: Path, distributed: bool, group: dist.ProcessGroup | None = None
) -> dict[str, Any]:
    """Write this rank's part; replicated tensors are written once. A collective call when ``distributed``.

    Args:
        group: all ranks, for what they say to each other meanwhile; None takes the group that training uses.

    Returns:
        The files that this rank wrote, described for the manifest.

    Raises:
        OSError: the first failed write of any rank, on every rank.
    """
    writer = StreamingWriter(folder, _file_numbers(_all_sizes(tensors, distributed, group)))
    try:
        with quiet():
            dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=not distributed)
    except CheckpointException as failure:
        kind = OSError if isinstance(_first(failure)[1], OSError) else RuntimeError
        raise kind(failure_message(failure)) from None
    return writer.written


def read_tensors(tensors: dict[str, Tensor], folder: Path, distributed: bool) -> None:
    """Fill ``tensors`` in place by name, each rank reading only what it holds.

    Raises:
        ValueError: a tensor is missing or has another shape, or a file cannot be read.
    """
    try:
        with quiet():
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not distributed)
    except CheckpointException as failure:
        raise ValueError(failure_message(failure)) from None


@contextmanager
def quiet() -> Iterator[None]:
    """One process is meant here; DCP warns about it each time."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def split_by_bytes(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, in groups of at most ``limit`` bytes; what is larger by itself has a group of its own."""
    groups: list[list[str]] = []
    filled = limit + 1
    for name, size in sizes.items():
        if filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def _all_sizes(tensors: dict[str, Tensor], distributed: bool, group: dist.ProcessGroup | None) -> dict[str, int]:
    """Bytes by name over all ranks: stages of a pipeline hold different tensors, and one numbering serves all."""
    sizes = {name: tensor.nbytes for name, tensor in tensors.items()}
    if not distributed:
        return sizes
    gathered: list = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, sizes, group=group)
    return {name: size for part in gathered for name, size in part.items()}


def _file_numbers(sizes: dict[str, int]) -> dict[str, int]:
    files = split_by_bytes(sizes, FILE_BYTES)
    return {name: number for number, names in enumerate(files, start=1) for name in names}


def _first(failure: CheckpointException) -> tuple[int, BaseException]:
    rank, (error, _) = min(failure.failures.items())
    return rank, error


def failure_message(failure: CheckpointException) -> str:
    """What went wrong, and on which rank."""
    rank, error = _first(failure)
    return f"{error} (rank {rank})" if rank else str(error)
