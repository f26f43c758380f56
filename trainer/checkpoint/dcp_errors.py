"""Hide a warning of torch's distributed checkpoint (DCP), and tell from its errors which rank failed and why."""

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


def failed_with(failure: CheckpointException) -> tuple[int, BaseException]:
    """The first rank that failed, and its error."""
    rank, (error, _) = min(failure.failures.items())
    return rank, error


def failure_message(failure: CheckpointException) -> str:
    """The error of the first rank that failed, with the rank's number."""
    rank, error = failed_with(failure)
    return f"{error} (rank {rank})" if rank else str(error)
