"""Compute the norm of the gradient over all ranks and clip by it, under every plan but ZeRO, where DeepSpeed clips.

``torch.nn.utils.clip_grad_norm_`` does not see the other stages of a pipeline, and accepts neither DTensors beside
plain tensors, as FSDP leaves parameters that are single numbers, nor DTensors on different meshes. Here each rank sums
the squares of its own shards, and ranks then exchange one number for each way of sharding.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import _StridedShard

from .mesh import Mesh

CACHED = 32_768
"""Elements of a part whose conversion to float64 stays in the cache of a processor core."""
SMALL = 2_048
"""Elements of a tensor up to which one call for many tensors takes less time than calls for each."""


def local(tensor: Tensor) -> Tensor:
    """This rank's shard of a tensor, sharing memory with it."""
    return tensor._local_tensor if isinstance(tensor, DTensor) else tensor


def sharded_axes(tensor: Tensor) -> tuple[str, ...]:
    """Mesh axes over which ``tensor`` is sharded."""
    if not isinstance(tensor, DTensor):
        return ()
    names = tensor.device_mesh.mesh_dim_names or ()
    placed = zip(names, tensor.placements, strict=True)
    return tuple(name for name, placement in placed if isinstance(placement, (Shard, _StridedShard)))


@torch.no_grad()
def global_norm(gradients: Sequence[Tensor], mesh: Mesh) -> Tensor:
    """Euclidean norm of the gradient of the whole model; a collective call.

    Args:
        gradients: gradients of this rank's parameters; one that two stages share must be listed on one of them only.
            DTensors may be sharded or replicated, but not partial sums.

    Returns:
        fp32 scalar on the mesh's device, equal on all ranks.
    """
    kinds: dict[tuple[str, ...], list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        kinds[sharded_axes(gradient)].append(local(gradient))
    dtype = torch.float64 if mesh.device.type == "cpu" else torch.float32
    total = torch.zeros((), device=mesh.device, dtype=dtype)
    for axes in sorted(kinds):  # ranks along these axes have the same parameters, and so the same order of calls
        squares = sum_of_squares(kinds[axes], dtype).to(mesh.device)
        for axis in axes:
            group = mesh.group(axis)
            if group is not None:
                dist.all_reduce(squares, group=group)
        total += squares
    if mesh.pipeline_group is not None:
        dist.all_reduce(total, group=mesh.pipeline_group)
    return total.sqrt().float()


def sum_of_squares(tensors: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """The sum of the squares of all elements, computed in ``dtype``: a scalar.

    On a CPU use float64: it adds squares one after the other, so that in fp32 the sum of half a million is wrong by
    1e-4. For this, parts of the tensors that stay in the cache are converted and multiplied, which takes a third of the
    time of torch's norm in float64. Small tensors take less time by that norm.
    """
    if dtype is not torch.float64 or any(tensor.device.type != "cpu" for tensor in tensors):
        return torch.stack(torch._foreach_norm(list(tensors), 2, dtype)).square().sum()
    small = [tensor for tensor in tensors if tensor.numel() <= SMALL]
    sums = [torch.stack(torch._foreach_norm(small, 2, dtype)).square().sum()] if small else []
    for tensor in tensors:
        if tensor.numel() > SMALL:
            for part in tensor.reshape(-1).split(CACHED):
                wide = part.double()
                sums.append(torch.dot(wide, wide))
    return torch.stack(sums).sum()


@torch.no_grad()
def scale_gradients(gradients: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply gradients in place by a scalar."""
    by_device: dict[torch.device, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        by_device[gradient.device].append(local(gradient))
    for device, tensors in by_device.items():
        torch._foreach_mul_(tensors, factor.to(device))


def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
    """Factor that clips gradients of this norm, as in ``torch.nn.utils.clip_grads_with_norm_``."""
    return torch.clamp(max_norm / (norm + 1e-6), max=1.0)
