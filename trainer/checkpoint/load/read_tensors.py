"""Read the tensors of a checkpoint through torch's distributed checkpoint (DCP); each rank reads its own shards."""

from __future__ import annotations

from pathlib import Path

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException

from ..dcp_errors import failure_message, quiet


def read_tensors(tensors: dict[str, Tensor], folder: Path, distributed: bool) -> None:
    """Fill ``tensors`` in place by name; each rank reads only its own shards.

    Raises:
        ValueError: a tensor is missing or has another shape, or a file cannot be read.
    """
    try:
        with quiet():
            dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=not distributed)
    except CheckpointException as failure:
        raise ValueError(failure_message(failure)) from None
