"""The mesh: the place of this process among all ranks, and the collectives that every part uses.

It is passed explicitly; there is no global."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from .device import backend_of, identity_of, local_device
from .plan import AXES, Degrees, Plan
from .rendezvous import join


class Sums:
    """Integers that are being summed over ranks while something else is done."""

    def __init__(self, values: Iterable[int], group: dist.ProcessGroup | None) -> None:
        self._tensor = torch.tensor(list(values), dtype=torch.int64)
        self._work = None if group is None else dist.all_reduce(self._tensor, group=group, async_op=True)

    def result(self) -> list[int]:
        """The sums; waits for them the first time."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._tensor.tolist()


@dataclass(frozen=True)
class Mesh:
    """Degrees, rank and device of this process, and the collectives that every part needs."""

    degrees: Degrees
    rank: int
    device: torch.device
    axes: DeviceMesh | None
    """torch's device mesh with the axes pipeline, replicate, shard, tensor; None on one process."""
    data_group: dist.ProcessGroup | None
    """Ranks that see different samples of the same batch; None when there is one."""
    pipeline_group: dist.ProcessGroup | None = None
    """Ranks that hold the stages of one copy of the model; None when there is one."""
    timeout: datetime.timedelta = datetime.timedelta(minutes=30)
    """How long a rank waits for the others."""

    @property
    def world_size(self) -> int:
        return self.degrees.world_size

    @property
    def is_main(self) -> bool:
        """The one rank that speaks and writes."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        return self.degrees.data

    @property
    def data_rank(self) -> int:
        return self.degrees.data_rank(self.rank)

    @property
    def pipeline_rank(self) -> int:
        return self.index("pipeline")

    def index(self, axis: str) -> int:
        """This rank's place along ``axis`` (row-major over AXES)."""
        return self.degrees.index(self.rank, axis)

    def group(self, axis: str) -> dist.ProcessGroup | None:
        """Ranks that differ from this one along ``axis`` only; None when there is one."""
        return self.axes[axis].get_group() if self.axes is not None and getattr(self.degrees, axis) > 1 else None

    def sum_integers(self, values: Iterable[int]) -> list[int]:
        """Sums over the data ranks; on the CPU, so that a GPU is not waited for."""
        return self.begin_sums(values).result()

    def begin_sums(self, values: Iterable[int]) -> Sums:
        """Start ``sum_integers`` without waiting: even a small message takes long when ranks are not quite in step."""
        return Sums(values, self.data_group)

    def any_flags(self, flags: Iterable[bool]) -> list[bool]:
        """Logical or over *all* ranks: what one rank asks for, every rank does."""
        group = dist.group.WORLD if self.world_size > 1 else None
        return [bool(flag) for flag in self._reduce(flags, group, dist.ReduceOp.MAX)]

    def sum_tensor(self, tensor: Tensor) -> Tensor:
        """Sum over the data ranks and the stages of a pipeline, in place."""
        for group in (self.data_group, self.pipeline_group):
            if group is not None:
                dist.all_reduce(tensor, group=group)
        return tensor

    def broadcast_object(self, value: object) -> object:
        """Rank 0's JSON-like ``value`` on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gather_objects(self, value: object, group: dist.ProcessGroup | None = None) -> list:
        """Every rank's ``value``, in rank order, on every rank; ``group`` is one of all ranks (``new_group``)."""
        if self.world_size == 1:
            return [value]
        gathered: list = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=group or dist.group.WORLD)
        return gathered

    def new_group(self, ranks: list[int] | None = None) -> dist.ProcessGroup | None:
        """Another group (of all ranks) on the CPU, for a thread that talks while training does; a collective call.

        None on one process, and on ranks that are not in it."""
        if self.world_size == 1:
            return None
        group = dist.new_group(ranks, timeout=self.timeout, backend="gloo")
        return group if isinstance(group, dist.ProcessGroup) else None

    def barrier(self) -> None:
        if self.world_size > 1:
            # An all-reduce on the CPU rather than dist.barrier(), which would need a GPU with NCCL.
            self._reduce([0], dist.group.WORLD, dist.ReduceOp.SUM)

    def close(self) -> None:
        """Wait for all ranks, then leave: a rank that ends while its peers still communicate makes them abort."""
        if self.axes is not None and dist.is_initialized():
            self.barrier()
            dist.destroy_process_group()

    @staticmethod
    def _reduce(values: Iterable[int], group: dist.ProcessGroup | None, op: dist.ReduceOp.RedOpType) -> list[int]:
        if group is None:
            return [int(value) for value in values]
        tensor = torch.tensor([int(value) for value in values], dtype=torch.int64)
        dist.all_reduce(tensor, op=op, group=group)
        return tensor.tolist()


def build_mesh(plan: Plan, timeout_minutes: float = 30.0, join_minutes: float = 10.0) -> Mesh:
    """Join the process group that the launcher described in the environment (RANK, WORLD_SIZE ...) and lay the mesh.

    Args:
        timeout_minutes: how long a rank waits for the others in training.
        join_minutes: how long it waits for them here.

    Raises:
        ValueError: the plan's degrees do not multiply to WORLD_SIZE.
        UserError: the ranks do not meet.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    degrees = plan.degrees(world_size)
    device = local_device()
    if world_size == 1 and plan.data_parallel != "fsdp":
        return Mesh(degrees, 0, device, None, None)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    if not dist.is_initialized():
        backend = backend_of(device)
        if world_size == 1:  # FSDP casts and offloads on one process, too, and needs a group for it; nobody is to meet
            dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
        else:
            join(rank, world_size, backend, timeout, datetime.timedelta(minutes=join_minutes), identity_of(device))
    shape = tuple(getattr(degrees, axis) for axis in AXES)
    axes = init_device_mesh(device.type, shape, mesh_dim_names=AXES)
    data_group = axes["replicate", "shard"]._flatten("data").get_group() if degrees.data > 1 else None
    pipeline_group = axes["pipeline"].get_group() if degrees.pipeline > 1 else None
    return Mesh(degrees, rank, device, axes, data_group, pipeline_group, timeout)
