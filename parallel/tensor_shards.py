"""Convert between a whole tensor and the pieces that ranks hold, for every placement that occurs in trireme.

torch's own arithmetic does not fit here. Tensor parallelism splits first and FSDP2 shards what is left, but the mesh
lists the tensor axis last; FSDP2 marks that by a ``_StridedShard``, which on the tensor axis itself means something
else: a fused projection (query, key and value one after the other), of which each rank holds a piece of every part.
Here the axis decides: a mesh is undone from its last axis to its first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement, Shard, _StridedShard

TENSOR_AXIS = "tensor"


@dataclass(frozen=True)
class Cut:
    """How one mesh axis cuts a tensor: ``parts`` equal runs of ``dim``, each cut over ``ranks`` as torch.chunk does."""

    dim: int
    ranks: int
    rank: int
    parts: int = 1

    def piece(self, tensor: Tensor) -> Tensor:
        """What ``rank`` holds of ``tensor``; a view unless there are several parts.

        Raises:
            ValueError: several parts, and the dimension does not divide by parts x ranks.
        """
        size = tensor.shape[self.dim]
        if self.parts == 1:
            start, length = self._range(size, self.rank)
            return tensor.narrow(self.dim, start, length)
        if size % (self.parts * self.ranks):
            raise ValueError(f"dimension {self.dim} of {tuple(tensor.shape)} is not {self.parts} x {self.ranks} pieces")
        pieces = tensor.chunk(self.parts * self.ranks, self.dim)
        return torch.cat(pieces[self.rank :: self.ranks], self.dim)

    def gather(self, local: Tensor, size: int, group: dist.ProcessGroup) -> Tensor:
        """All ranks' pieces put together along ``dim``, ``size`` long; a collective call."""
        longest = -(-size // self.ranks)
        padded = local.new_zeros([*local.shape[: self.dim], longest, *local.shape[self.dim + 1 :]])
        padded.narrow(self.dim, 0, local.shape[self.dim]).copy_(local)
        received = [torch.empty_like(padded) for _ in range(self.ranks)]
        dist.all_gather(received, padded, group=group)
        if self.parts == 1:
            lengths = [self._range(size, rank)[1] for rank in range(self.ranks)]
            return torch.cat([t.narrow(self.dim, 0, n) for t, n in zip(received, lengths, strict=True)], self.dim)
        by_rank = [tensor.chunk(self.parts, self.dim) for tensor in received]
        return torch.cat([pieces[part] for part in range(self.parts) for pieces in by_rank], self.dim)

    def _range(self, size: int, rank: int) -> tuple[int, int]:
        longest = -(-size // self.ranks)
        start = min(rank * longest, size)
        return start, min(longest, size - start)


def local_part(full: Tensor, like: DTensor) -> Tensor:
    """This rank's piece of ``full``, as ``like`` is spread; no communication.

    Args:
        full: the whole tensor, on any device, of the global shape of ``like``.
    """
    piece = full
    for cut in reversed(_cuts(like)):
        piece = piece if cut is None else cut.piece(piece)
    return piece


@torch.no_grad()
def copy_part(full: Tensor, target: Tensor) -> None:
    """Fill ``target`` from the whole tensor ``full``: a DTensor takes this rank's piece; no communication."""
    if isinstance(target, DTensor):
        target._local_tensor.copy_(local_part(full, target))
    else:
        target.copy_(full)


@torch.no_grad()
def whole(tensor: DTensor) -> Tensor:
    """The whole of a sharded, replicated or partially summed tensor, on every rank; a collective call."""
    cuts, mesh = _cuts(tensor), tensor.device_mesh
    shapes = [torch.empty(tensor.shape, device="meta")]  # what is left after cutting from the last axis to the first
    for cut in reversed(cuts):
        shapes.append(shapes[-1] if cut is None else cut.piece(shapes[-1]))
    result = tensor._local_tensor.detach()
    for axis, (cut, placement, before) in enumerate(zip(cuts, tensor.placements, shapes[-2::-1], strict=True)):
        if cut is not None:
            result = cut.gather(result, before.shape[cut.dim], mesh.get_group(axis))
        elif placement.is_partial():
            result = result.clone()
            dist.all_reduce(result, group=mesh.get_group(axis))
    return result.clone() if result is tensor._local_tensor else result


def split_like(full: Tensor, mesh_axis: Placement, ranks: int, rank: int) -> Tensor:
    """This rank's contiguous piece of ``full`` under one placement on the tensor axis."""
    cut = _cut(mesh_axis, ranks, rank, TENSOR_AXIS)
    return full if cut is None else cut.piece(full).contiguous()


def _cuts(tensor: DTensor) -> list[Cut | None]:
    mesh = tensor.device_mesh
    names = mesh.mesh_dim_names or ("",) * mesh.ndim
    return [
        _cut(placement, mesh.size(axis), mesh.get_local_rank(axis), names[axis])
        for axis, placement in enumerate(tensor.placements)
    ]


def _cut(placement: Placement, ranks: int, rank: int, axis: str) -> Cut | None:
    if isinstance(placement, _StridedShard):
        parts = int(placement.split_factor) if axis == TENSOR_AXIS else 1
        return Cut(placement.dim, ranks, rank, parts)
    return Cut(placement.dim, ranks, rank) if isinstance(placement, Shard) else None
