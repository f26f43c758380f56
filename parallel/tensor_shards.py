"""Convert between a whole tensor and the shards on all ranks, for FSDP2, tensor parallelism and both together.

torch's own conversion is wrong for some placements, because ``_StridedShard`` has two meanings. On the axes of FSDP2 it
says that tensor parallelism has split the tensor first, although the mesh lists the tensor axis last. On the tensor
axis it marks a fused projection (query, key and value one after the other), of which each rank holds a shard of every
matrix. Here the name of the axis decides the meaning, and axes are split from the last to the first.
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
class AxisSplit:
    """Split of a tensor over one mesh axis.

    Dimension ``dim`` has ``parts`` equal matrices one after the other, each split over ``ranks`` as torch.chunk does.
    """

    dim: int
    ranks: int
    rank: int
    parts: int = 1

    def shard(self, tensor: Tensor) -> Tensor:
        """The shard of ``tensor`` on ``rank``; it is a view if ``parts`` is 1.

        Raises:
            ValueError: there are several parts, and the dimension is not a multiple of parts x ranks.
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
        """The shards of all ranks, joined along ``dim`` to length ``size``; a collective call."""
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
    """This rank's shard of ``full`` under the placements of ``like``; no communication.

    Args:
        full: the whole tensor, on any device, with the global shape of ``like``.
    """
    piece = full
    for cut in reversed(_cuts(like)):
        piece = piece if cut is None else cut.shard(piece)
    return piece


@torch.no_grad()
def copy_part(full: Tensor, target: Tensor) -> None:
    """Fill ``target`` from the whole tensor ``full``; a DTensor takes this rank's shard. No communication."""
    if isinstance(target, DTensor):
        target._local_tensor.copy_(local_part(full, target))
    else:
        target.copy_(full)


@torch.no_grad()
def full_tensor(tensor: DTensor) -> Tensor:
    """The whole tensor, on every rank, of a sharded, replicated or partially summed one; a collective call."""
    cuts, mesh = _cuts(tensor), tensor.device_mesh
    shapes = [torch.empty(tensor.shape, device="meta")]  # shapes after each split, from the last axis to the first
    for cut in reversed(cuts):
        shapes.append(shapes[-1] if cut is None else cut.shard(shapes[-1]))
    result = tensor._local_tensor.detach()
    for axis, (cut, placement, before) in enumerate(zip(cuts, tensor.placements, shapes[-2::-1], strict=True)):
        if cut is not None:
            result = cut.gather(result, before.shape[cut.dim], mesh.get_group(axis))
        elif placement.is_partial():
            result = result.clone()
            dist.all_reduce(result, group=mesh.get_group(axis))
    return result.clone() if result is tensor._local_tensor else result


def split_like(full: Tensor, mesh_axis: Placement, ranks: int, rank: int) -> Tensor:
    """This rank's contiguous shard of ``full`` under one placement on the tensor axis."""
    cut = _cut(mesh_axis, ranks, rank, TENSOR_AXIS)
    return full if cut is None else cut.shard(full).contiguous()


def _cuts(tensor: DTensor) -> list[AxisSplit | None]:
    mesh = tensor.device_mesh
    names = mesh.mesh_dim_names or ("",) * mesh.ndim
    return [
        _cut(placement, mesh.size(axis), mesh.get_local_rank(axis), names[axis])
        for axis, placement in enumerate(tensor.placements)
    ]


def _cut(placement: Placement, ranks: int, rank: int, axis: str) -> AxisSplit | None:
    if isinstance(placement, _StridedShard):
        parts = int(placement.split_factor) if axis == TENSOR_AXIS else 1
        return AxisSplit(placement.dim, ranks, rank, parts)
    return AxisSplit(placement.dim, ranks, rank) if isinstance(placement, Shard) else None
