"""Helpers to read and write checkpoint tensors: group them by size, and explain errors of torch's checkpoint library.

The library is torch's distributed checkpoint (DCP, ``torch.distributed.checkpoint``).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch.distributed.checkpoint.api import CheckpointException


@contextmanager
def quiet() -> Iterator[None]:
    """Hide DCP's warning about a call on one process, which is intended here."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def split_by_bytes(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, in groups of at most ``limit`` bytes; a larger tensor has a group of its own."""
    groups: list[list[str]] = []
    filled = limit + 1
    for name, size in sizes.items():
        if filled + size > limit:
            groups.append([])
            filled = 0
        groups[-1].append(name)
        filled += size
    return groups


def failed_with(failure: CheckpointException) -> tuple[int, BaseException]:
    """The first rank that failed, and its error."""
    rank, (error, _) = min(failure.failures.items())
    return rank, error


def failure_message(failure: CheckpointException) -> str:
    """The error of the first rank that failed, with the rank's number."""
    rank, error = failed_with(failure)
    return f"{error} (rank {rank})" if rank else str(error)
