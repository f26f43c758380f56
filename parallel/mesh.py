"""``Mesh``: the position of this process among all ranks, and the collectives that several parts of trireme use.

The mesh is passed explicitly; no global variable holds it.
"""

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
from .rendezvous import destroy_process_group, join_process_group


class Sums:
    """Integers that are summed over ranks in the background."""

    def __init__(self, values: Iterable[int], group: dist.ProcessGroup | None) -> None:
        self._tensor = torch.tensor(list(values), dtype=torch.int64)
        self._work = None if group is None else dist.all_reduce(self._tensor, group=group, async_op=True)

    def result(self) -> list[int]:
        """The sums; the first call waits for them."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._tensor.tolist()


@dataclass(frozen=True)
class Mesh:
    """Degrees, rank and device of this process, and the shared collectives."""

    degrees: Degrees
    rank: int
    device: torch.device
    axes: DeviceMesh | None
    """torch's device mesh with the axes pipeline, replicate, shard, tensor; None on one process."""
    data_group: dist.ProcessGroup | None
    """Ranks that see different samples of the same batch; None if this rank is the only one."""
    pipeline_group: dist.ProcessGroup | None = None
    """Ranks that hold the stages of one copy of the model; None if this rank is the only one."""
    timeout: datetime.timedelta = datetime.timedelta(minutes=30)
    """How long a rank waits for the others."""

    @property
    def world_size(self) -> int:
        return self.degrees.world_size

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone logs and writes shared files."""
        return self.rank == 0

    @property
    def is_local_main(self) -> bool:
        """Whether this is the first rank of its machine."""
        return int(os.environ.get("LOCAL_RANK", "0")) == 0

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
        """This rank's index along ``axis`` (row-major over AXES)."""
        return self.degrees.index(self.rank, axis)

    def group(self, axis: str) -> dist.ProcessGroup | None:
        """Ranks that differ from this one along ``axis`` only; None if this rank is the only one."""
        return self.axes[axis].get_group() if self.axes is not None and getattr(self.degrees, axis) > 1 else None

    def sum_integers(self, values: Iterable[int]) -> list[int]:
        """Sums over the data ranks, computed on the CPU so that they do not wait for a GPU."""
        return self.begin_sums(values).result()

    def begin_sums(self, values: Iterable[int]) -> Sums:
        """Start ``sum_integers`` without waiting, since even a small message waits for the slowest rank."""
        return Sums(values, self.data_group)

    def any_flags(self, flags: Iterable[bool]) -> list[bool]:
        """Logical or over *all* ranks, so that every rank acts on a request of any."""
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
        """Every rank's ``value``, in rank order, on every rank.

        Args:
            group: a group of all ranks to use in place of the default one, as ``new_group`` makes it.
        """
        if self.world_size == 1:
            return [value]
        gathered: list = [None] * self.world_size
        dist.all_gather_object(gathered, value, group=group or dist.group.WORLD)
        return gathered

    def new_group(self, ranks: list[int] | None = None) -> dist.ProcessGroup | None:
        """A further CPU group, so that a thread can communicate beside training; a collective call.

        Args:
            ranks: members of the group; None takes all ranks.

        Returns:
            None on a single process, and on ranks outside the group.
        """
        if self.world_size == 1:
            return None
        group = dist.new_group(ranks, timeout=self.timeout, backend="gloo")
        return group if isinstance(group, dist.ProcessGroup) else None

    def barrier(self) -> None:
        if self.world_size > 1:
            # An all-reduce on the CPU replaces dist.barrier(), which would run on the GPU with NCCL.
            self._reduce([0], dist.group.WORLD, dist.ReduceOp.SUM)

    def close(self) -> None:
        """Wait for all ranks, then leave the group, since a rank that ends early makes communicating peers abort."""
        if self.axes is not None and dist.is_initialized():
            self.barrier()
            destroy_process_group()

    @staticmethod
    def _reduce(values: Iterable[int], group: dist.ProcessGroup | None, op: dist.ReduceOp.RedOpType) -> list[int]:
        if group is None:
            return [int(value) for value in values]
        tensor = torch.tensor([int(value) for value in values], dtype=torch.int64)
        dist.all_reduce(tensor, op=op, group=group)
        return tensor.tolist()


def build_mesh(plan: Plan, timeout_minutes: float = 30.0, join_minutes: float = 10.0) -> Mesh:
    """Join the process group that the environment describes (RANK, WORLD_SIZE ...) and arrange its ranks in a mesh.

    Args:
        timeout_minutes: how long a rank waits for the others in training.
        join_minutes: how long a rank waits for the others while joining.

    Raises:
        ValueError: the plan's degrees do not multiply to WORLD_SIZE.
        UserError: the ranks cannot form a group.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    degrees = plan.degrees(world_size)
    device = local_device()
    if world_size == 1 and plan.data_parallel != "fsdp":
        return Mesh(degrees, 0, device, None, None)
    timeout = datetime.timedelta(minutes=timeout_minutes)
    if not dist.is_initialized():
        backend = backend_of(device)
        if world_size == 1:  # FSDP needs a group even on one process, where it casts and offloads
            dist.init_process_group(backend, timeout=timeout, store=dist.HashStore(), rank=0, world_size=1)
        else:
            patience = datetime.timedelta(minutes=join_minutes)
            join_process_group(rank, world_size, backend, timeout, patience, identity_of(device))
    shape = tuple(getattr(degrees, axis) for axis in AXES)
    axes = init_device_mesh(device.type, shape, mesh_dim_names=AXES)
    data_group = axes["replicate", "shard"]._flatten("data").get_group() if degrees.data > 1 else None
    pipeline_group = axes["pipeline"].get_group() if degrees.pipeline > 1 else None
    return Mesh(degrees, rank, device, axes, data_group, pipeline_group, timeout)
