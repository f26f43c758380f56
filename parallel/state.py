"""From training state to what a checkpoint can hold, and back.

Distributed checkpoints store rectangular pieces of a tensor. A fused projection under tensor parallelism is not one:
a rank holds some columns of the query, of the key and of the value. Such tensors are brought together, one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import _StridedShard

from .shards import local_part, whole
from .strategy import Read, Shapes, Take, as_it_is


def savable(name: str, tensor: Tensor, take: Take = as_it_is) -> Tensor:
    """What is written of ``tensor``: what ``take`` makes of it where its pieces are rectangles, else the whole, which
    is new; a collective call."""
    return whole(tensor).cpu() if isinstance(tensor, DTensor) and _in_pieces(tensor) else take(name, tensor)


def fill(tensors: dict[str, Tensor], read: Read) -> None:
    """Fill ``tensors`` in place from a checkpoint; a collective call."""
    joined = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor) and _in_pieces(tensor)}
    direct = {name: tensor for name, tensor in tensors.items() if name not in joined}
    wholes = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in joined.items()}
    read({**direct, **wholes})
    with torch.no_grad():
        for name, tensor in joined.items():
            tensor._local_tensor.copy_(local_part(wholes.pop(name), tensor))


def state_shapes(shapes: Shapes) -> dict[str, dict[str, Any]]:
    """Optimizer state in a checkpoint: parameter name -> state name -> (shape, type)."""
    found: dict[str, dict[str, Any]] = {}
    for name, entry in shapes.items():
        if name.startswith("optim."):
            parameter, _, key = name.removeprefix("optim.").rpartition(".")
            found.setdefault(parameter, {})[key] = entry
    return found


def _in_pieces(tensor: DTensor) -> bool:
    names = tensor.device_mesh.mesh_dim_names or ()
    # FSDP over tensor parallelism marks its own axes so too, but its pieces are rectangles.
    return any(
        isinstance(placement, _StridedShard) and name == "tensor"
        for name, placement in zip(names, tensor.placements, strict=True)
    )
