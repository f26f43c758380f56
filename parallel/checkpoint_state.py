"""Turn training state into tensors that a checkpoint can store, and back.

Distributed checkpoints store rectangular pieces of a tensor. A fused projection under tensor parallelism is not one:
a rank holds some columns of the query, of the key and of the value. Such tensors are brought together, one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import _StridedShard

from .mesh import Mesh
from .plan import AXES
from .strategy import CopyTensor, Read, Shapes, no_copy
from .tensor_shards import copy_part, whole


def tensors_to_write(tensors: dict[str, Tensor], mesh: Mesh, copy: CopyTensor = no_copy) -> dict[str, Tensor]:
    """What this rank writes of its tensors; a collective call.

    Replicated tensors are written by one rank; choosing it here spares the others a copy. A tensor whose pieces are
    rectangles goes through ``copy``; any other is gathered first, which makes a new one anyway.

    Args:
        tensors: by name; ranks that differ in no axis but the data and tensor ones have the same names.
    """
    own, written = own_names(tensors, mesh), {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor) and _in_pieces(tensor):
            joined = whole(tensor)  # on every rank: all of them have a part
            if name in own:
                written[name] = joined.cpu()
        elif name in own:
            written[name] = copy(name, tensor)
    return written


def own_names(tensors: dict[str, Tensor], mesh: Mesh) -> set[str]:
    """Names that this rank writes; every rank chooses by the same rule."""
    alike: dict[tuple[str, ...], dict[str, int]] = {}
    for name, tensor in tensors.items():
        alike.setdefault(_replicated(tensor), {})[name] = tensor.nbytes
    own: set[str] = set()
    for axes, sizes in alike.items():
        count, here = 1, 0
        for axis in axes:
            degree = getattr(mesh.degrees, axis)
            count, here = count * degree, here * degree + mesh.index(axis)
        own |= {name for name, owner in owners(sizes, count).items() if owner == here}
    return own


def owners(sizes: dict[str, int], ranks: int) -> dict[str, int]:
    """Rank that keeps each tensor: the next largest tensor goes to the rank that holds least; equal on every rank."""
    loads = [0] * ranks
    chosen = {}
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        chosen[name] = loads.index(min(loads))
        loads[chosen[name]] += size
    return chosen


def _replicated(tensor: Tensor) -> tuple[str, ...]:
    """Axes of the mesh along which all ranks write the same of ``tensor``."""
    if not isinstance(tensor, DTensor) or _in_pieces(tensor):
        return AXES[1:]  # stages hold different tensors
    placements = dict(zip(tensor.device_mesh.mesh_dim_names or (), tensor.placements, strict=True))
    return tuple(axis for axis in AXES[1:] if axis not in placements or placements[axis].is_replicate())


def fill(tensors: dict[str, Tensor], read: Read) -> None:
    """Fill ``tensors`` in place from a checkpoint; a collective call."""
    joined = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor) and _in_pieces(tensor)}
    direct = {name: tensor for name, tensor in tensors.items() if name not in joined}
    wholes = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in joined.items()}
    read({**direct, **wholes})
    for name, tensor in joined.items():
        copy_part(wholes.pop(name), tensor)


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
