"""The plan: how a run is spread over its processes. It holds numbers and switches only; no torch is imported here.

``configs/plan/*.yaml`` are instances of it. Degrees multiply to the world size; one of them may be ``auto``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Literal

AXES = ("pipeline", "replicate", "shard", "tensor")
"""Mesh axes, outermost first: tensor ranks are neighbours, pipeline stages furthest apart."""


@dataclass(frozen=True)
class Degrees:
    """Resolved sizes of the four mesh axes."""

    pipeline: int = 1
    replicate: int = 1
    shard: int = 1
    tensor: int = 1

    @property
    def world_size(self) -> int:
        return self.pipeline * self.data * self.tensor

    @property
    def data(self) -> int:
        """Number of ranks that see different samples."""
        return self.replicate * self.shard

    def data_rank(self, rank: int) -> int:
        """Index of ``rank`` among the ranks that see different samples (row-major over AXES)."""
        return rank // self.tensor % self.data


@dataclass
class DDPOptions:
    """Options of ``torch.nn.parallel.DistributedDataParallel``, by its own names."""

    bucket_cap_mb: int = 25
    """Gradient bucket size in MiB; smaller buckets overlap sooner, larger ones send fewer messages."""
    gradient_as_bucket_view: bool = True
    """Let gradients live in the communication buckets: saves one copy of the gradients in memory."""
    find_unused_parameters: bool = False
    """Walk the graph for parameters without gradient; needed only if a family leaves some unused."""

    def __post_init__(self) -> None:
        if self.bucket_cap_mb <= 0:
            raise ValueError(f"bucket_cap_mb={self.bucket_cap_mb} must be positive; 25 is the usual value")


@dataclass
class Plan:
    """The parallelism of a run."""

    name: str = "single"
    """Shown in logs and checkpoints."""
    pipeline: int | Literal["auto"] = 1
    """Pipeline stages."""
    replicate: int | Literal["auto"] = 1
    """Whole copies of the model, each seeing other samples."""
    shard: int | Literal["auto"] = 1
    """Ranks over which parameters, gradients and optimizer state are sharded, each seeing other samples."""
    tensor: int | Literal["auto"] = 1
    """Ranks over which every layer's matrices are split."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Compute type; weights and optimizer state stay fp32. fp16 scales the loss dynamically."""
    tf32: bool = False
    """Allow TensorFloat-32 in fp32 matrix products (CUDA only)."""
    deterministic: bool = False
    """Ask torch for deterministic kernels only (slower on CUDA)."""
    compile: bool = False
    """Compile each block with ``torch.compile``."""
    recompute: Literal["none", "full"] = "none"
    """Recompute each block's activations in the backward pass instead of keeping them."""
    ddp: DDPOptions = field(default_factory=DDPOptions)
    """Options of DistributedDataParallel, used when ``replicate`` is above 1."""

    def __post_init__(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in AXES}
        if sum(size == "auto" for size in sizes.values()) > 1:
            raise ValueError(f"only one degree may be auto, got {sizes}; give the others a number")
        for axis, size in sizes.items():
            if size != "auto" and size < 1:
                raise ValueError(f"{axis}={size} must be at least 1")
        for axis in ("pipeline", "shard", "tensor"):
            if sizes[axis] != 1:
                raise ValueError(f"{axis}={sizes[axis]} is not supported yet; set it to 1 and spread with replicate")

    def degrees(self, world_size: int) -> Degrees:
        """Resolve ``auto`` for a number of processes.

        Raises:
            ValueError: the degrees do not multiply to ``world_size``.
        """
        sizes = {axis: getattr(self, axis) for axis in AXES}
        fixed = prod(size for size in sizes.values() if size != "auto")
        for axis, size in sizes.items():
            if size == "auto":
                if world_size % fixed:
                    raise ValueError(f"{world_size} processes do not divide by the plan's other degrees ({fixed})")
                sizes[axis] = world_size // fixed
        degrees = Degrees(**sizes)
        if degrees.world_size != world_size:
            shape = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1) or "one process"
            raise ValueError(
                f"plan {self.name!r} spreads over {degrees.world_size} ({shape}), got {world_size} processes"
            )
        return degrees

    def default_world_size(self, devices: int) -> int:
        """Processes to start when none are asked for: all ``devices`` if a degree is auto, else what the plan needs."""
        sizes = [getattr(self, axis) for axis in AXES]
        fixed = prod(size for size in sizes if size != "auto")
        return max(devices // fixed, 1) * fixed if "auto" in sizes else fixed
