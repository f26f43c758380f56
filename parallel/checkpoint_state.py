"""Prepare training state for a distributed checkpoint: choose the tensors that each rank writes, and gather those whose
shards cannot be stored. When a checkpoint is loaded, fill each rank's tensors from it.

Distributed checkpoints store rectangular shards of a tensor. Under tensor parallelism, a rank's shard of a fused
query-key-value projection is not rectangular: it holds some columns of the query, some of the key and some of the
value. Such tensors are gathered before they are stored, one at a time.
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
from .tensor_shards import copy_part, full_tensor


def tensors_to_write(tensors: dict[str, Tensor], mesh: Mesh, copy: CopyTensor = no_copy) -> dict[str, Tensor]:
    """The tensors that this rank writes; a collective call.

    Replicated tensors are written by one rank; the rank is chosen here, so that the others make no copy. A tensor with
    rectangular shards goes through ``copy``. Any other tensor is gathered, which makes a copy already.

    Args:
        tensors: the rank's tensors by name; all ranks of a pipeline stage have the same names.
    """
    own, written = own_names(tensors, mesh), {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor) and _not_rectangular(tensor):
            joined = full_tensor(tensor)  # a collective call, so every rank makes it
            if name in own:
                written[name] = joined.cpu()
        elif name in own:
            written[name] = copy(name, tensor)
    return written


def own_names(tensors: dict[str, Tensor], mesh: Mesh) -> set[str]:
    """Names of the tensors that this rank writes; every rank computes the same division of the work."""
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
    """The rank that keeps each tensor: tensors are assigned from large to small, each to the rank with fewest bytes.

    The result is the same on every rank.
    """
    loads = [0] * ranks
    chosen = {}
    for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        chosen[name] = loads.index(min(loads))
        loads[chosen[name]] += size
    return chosen


def _replicated(tensor: Tensor) -> tuple[str, ...]:
    """Mesh axes along which all ranks hold the same values of ``tensor``, or will after it is gathered."""
    if not isinstance(tensor, DTensor) or _not_rectangular(tensor):
        return AXES[1:]  # stages hold different tensors
    placements = dict(zip(tensor.device_mesh.mesh_dim_names or (), tensor.placements, strict=True))
    return tuple(axis for axis in AXES[1:] if axis not in placements or placements[axis].is_replicate())


def fill(tensors: dict[str, Tensor], read: Read) -> None:
    """Fill ``tensors`` in place from a checkpoint; a collective call."""
    joined = {n: tensor for n, tensor in tensors.items() if isinstance(tensor, DTensor) and _not_rectangular(tensor)}
    direct = {name: tensor for name, tensor in tensors.items() if name not in joined}
    wholes = {name: torch.empty(tensor.shape, dtype=tensor.dtype) for name, tensor in joined.items()}
    read({**direct, **wholes})
    for name, tensor in joined.items():
        copy_part(wholes.pop(name), tensor)


def state_shapes(shapes: Shapes) -> dict[str, dict[str, Any]]:
    """(shape, type) of the optimizer state in a checkpoint, by parameter name and state name."""
    found: dict[str, dict[str, Any]] = {}
    for name, entry in shapes.items():
        if name.startswith("optim."):
            parameter, _, key = name.removeprefix("optim.").rpartition(".")
            found.setdefault(parameter, {})[key] = entry
    return found


def _not_rectangular(tensor: DTensor) -> bool:
    """Whether a rank's part of ``tensor`` consists of several rectangles, as in fused projections."""
    names = tensor.device_mesh.mesh_dim_names or ()
    # FSDP over tensor parallelism uses _StridedShard on its own axes too, but there the parts are rectangles.
    return any(
        isinstance(placement, _StridedShard) and name == "tensor"
        for name, placement in zip(names, tensor.placements, strict=True)
    )
