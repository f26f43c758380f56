"""``Plan``: the ``plan`` section of a recipe. It says how a run is distributed over processes (data, tensor and
pipeline parallelism, ZeRO, offload), and sets precision, recomputation and compilation.

Each file in ``configs/plan/`` is a plan. The product of its degrees is the world size, and one degree may be ``auto``.
This file does not import torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import ClassVar, Literal

from ..errors import refuse
from .zero.options import DeepSpeedOptions

AXES = ("pipeline", "replicate", "shard", "tensor")
"""Mesh axes, outermost first: tensor ranks are neighbours, and pipeline stages are furthest apart."""
Dtype = Literal["fp32", "bf16", "fp16"]


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

    def index(self, rank: int, axis: str) -> int:
        """Index of ``rank`` along ``axis`` (row-major over AXES)."""
        within = prod(getattr(self, later) for later in AXES[AXES.index(axis) + 1 :])
        return rank // within % getattr(self, axis)

    def data_rank(self, rank: int) -> int:
        """Index of ``rank`` among the ranks that see different samples (row-major over AXES)."""
        return rank // self.tensor % self.data


@dataclass
class DDPOptions:
    """Options of ``torch.nn.parallel.DistributedDataParallel``, under torch's names."""

    bucket_cap_mb: int = 25
    """Gradient bucket size in MiB. Smaller buckets start to communicate sooner; larger ones send fewer messages."""
    gradient_as_bucket_view: bool = True
    """Keep gradients in the communication buckets, which saves one copy of the gradients in memory."""
    find_unused_parameters: bool = False
    """Search the graph for parameters without gradient; needed only if the model leaves some unused."""
    broadcast_buffers: bool = False
    """Copy the buffers of rank 0 to all ranks before every forward pass. They are equal anyway, unless a module of your
    own changes a buffer by the samples that it sees."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        if self.bucket_cap_mb <= 0:
            yield f"bucket_cap_mb={self.bucket_cap_mb} must be positive; 25 is the usual value"


@dataclass
class FSDPOptions:
    """Options of FSDP2 (``torch.distributed.fsdp.fully_shard``), under the names of FSDP1 where it has them."""

    reshard_after_forward: bool = True
    """Free the gathered parameters of a block after its forward pass and gather them again for its backward pass
    (ZeRO-3); false keeps them until the backward pass is done, with more memory and less traffic (ZeRO-2)."""
    reduce_every_micro_batch: bool = True
    """Reduce gradients with every micro-batch, so that only a shard of them is kept; false keeps whole gradients and
    reduces once per step, with the traffic of ZeRO-1."""
    transformer_layer_cls_to_wrap: list[str] = field(default_factory=list)
    """Classes of the modules to wrap; an empty list wraps the blocks of the family."""
    min_num_params: int | None = None
    """Wrap modules with at least this many parameters, instead of blocks."""
    forward_prefetch: int | bool = 0
    """Number of blocks to gather ahead in the forward pass, beyond the one that torch always gathers ahead; true is
    1."""
    backward_prefetch: int | Literal["backward_pre", "backward_post", "no_prefetch"] = 0
    """Number of blocks to gather ahead in the backward pass, beyond the one that torch always gathers ahead;
    backward_pre is 0."""
    offload: bool = False
    """Keep parameters, gradients and optimizer state in CPU memory, and run the optimizer there."""
    pin_memory: bool = True
    """Use page-locked memory for ``offload``; ignored without an accelerator."""
    param_dtype: Dtype | None = None
    """Type in which parameters are gathered and used; null follows ``plan.precision``."""
    reduce_dtype: Dtype = "fp32"
    """Type in which gradients are reduced."""
    output_dtype: Dtype | None = None
    """Type of a wrapped module's outputs; null does not change it."""
    cast_forward_inputs: bool = True
    """Cast the inputs of wrapped modules to ``param_dtype``."""

    REPLACED: ClassVar[dict[str, tuple[str, str]]] = {
        "sharding_strategy": (
            "is a plan of its own here",
            "FULL_SHARD: plan=fsdp_full_shard, SHARD_GRAD_OP: plan=fsdp_shard_grad_op, NO_SHARD: plan=fsdp_no_shard, "
            "HYBRID_SHARD: plan=fsdp_hybrid_shard, _HYBRID_SHARD_ZERO2: plan=fsdp_hybrid_shard_zero2",
        ),
        "cpu_offload": ("is called offload", "write plan.fsdp.offload=true, or plan=fsdp_offload"),
        "offload_params": ("is called offload", "write plan.fsdp.offload=true, or plan=fsdp_offload"),
        "auto_wrap_policy": (
            "is replaced by options that say which modules are wrapped",
            "give plan.fsdp.transformer_layer_cls_to_wrap, or plan.fsdp.min_num_params; the default wraps each block",
        ),
        "mixed_precision": (
            "is replaced by options for each type",
            "write plan.precision=bf16, or plan.fsdp.param_dtype, reduce_dtype",
        ),
        "buffer_dtype": ("is not changed by FSDP2", "leave it out: buffers keep their type"),
        "use_orig_params": ("is always true in FSDP2", "leave it out: parameters keep their names and shapes"),
        "limit_all_gathers": ("is always true in FSDP2", "leave it out: gathers wait for memory by themselves"),
        "sync_module_states": ("is never needed", "leave it out: every rank fills its shard from the seed or the file"),
        "cpu_ram_efficient_loading": ("is always on", "leave it out: a rank reads one tensor at a time"),
        "activation_checkpointing": ("is an option of every plan", "write plan.recompute=full or selective"),
        "ignored_modules": ("is not supported by FSDP2", "freeze parameters instead: model.frozen=[...]"),
        "ignored_parameters": ("is not supported", "freeze parameters instead: model.frozen=[...]"),
        "state_dict_type": ("is not a choice", "leave it out: checkpoints are sharded, `trireme export` joins them"),
        "xla": ("is for TPUs, which trireme does not run on", "remove it"),
        "xla_fsdp_settings": ("is for TPUs, which trireme does not run on", "remove it"),
        "xla_fsdp_grad_ckpt": ("is for TPUs, which trireme does not run on", "remove it"),
        "min_params": ("is called min_num_params", "write plan.fsdp.min_num_params"),
    }
    """Options of FSDP1 and its launchers that do not exist here, each with the reason and its replacement."""

    def __post_init__(self) -> None:
        self.forward_prefetch = int(self.forward_prefetch)
        refuse(self._flaws())
        if isinstance(self.backward_prefetch, str):
            self.backward_prefetch = 0

    def _flaws(self) -> Iterator[str]:
        if isinstance(self.backward_prefetch, str) and self.backward_prefetch != "backward_pre":
            yield (
                f"backward_prefetch={self.backward_prefetch!r} is not offered by FSDP2, which always gathers one "
                "block ahead; use backward_pre, or a number of blocks"
            )
        for name in ("forward_prefetch", "backward_prefetch"):
            value = getattr(self, name)
            if not isinstance(value, str) and value < 0:
                yield f"{name}={value} must not be negative; 0 or 1 is usual"
        if self.min_num_params is not None and self.min_num_params < 1:
            yield f"min_num_params={self.min_num_params} must be at least 1; write 1 or more, or null to wrap blocks"
        if self.min_num_params is not None and self.transformer_layer_cls_to_wrap:
            yield (
                "min_num_params and transformer_layer_cls_to_wrap contradict; give one, and set the other to null or []"
            )


Schedule = Literal[
    "gpipe", "1f1b", "interleaved_1f1b", "looped_bfs", "interleaved_zero_bubble", "zbv_zero_bubble", "dualpipev"
]


@dataclass
class PipelineOptions:
    """How micro-batches pass through the stages (``torch.distributed.pipelining``)."""

    schedule: Schedule = "1f1b"
    """Order of forward and backward passes. interleaved_1f1b, looped_bfs and interleaved_zero_bubble give each rank
    several stages; zbv_zero_bubble and dualpipev give each rank two, in the shape of a V."""
    stages_per_rank: int | None = None
    """Stages on each rank; null means 1 for gpipe and 1f1b, and 2 for the others."""
    split: list[int] | None = None
    """Number of blocks of each stage, first to last; null balances the estimated cost, head included."""

    V_SHAPED: ClassVar[tuple[str, ...]] = ("zbv_zero_bubble", "dualpipev")
    SINGLE: ClassVar[tuple[str, ...]] = ("gpipe", "1f1b")

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        wanted = self.stages_per_rank
        if wanted is not None and wanted < 1:
            yield f"stages_per_rank={wanted} must be at least 1; write 1 or more, or null for the usual"
        elif wanted not in (None, 1) and self.schedule in self.SINGLE:
            yield (
                f"stages_per_rank={wanted} cannot be combined with schedule {self.schedule}, which takes one; "
                "use interleaved_1f1b"
            )
        elif wanted not in (None, 2) and self.schedule in self.V_SHAPED:
            yield f"stages_per_rank={wanted} cannot be combined with schedule {self.schedule}, which takes 2; use 2"
        elif wanted == 1 and self.schedule not in self.SINGLE:
            yield f"stages_per_rank=1 cannot be combined with schedule {self.schedule}; use at least 2, or 1f1b"
        if self.split is not None and any(blocks < 1 for blocks in self.split):
            yield f"split={self.split} must give every stage at least one block; write numbers of at least 1, or null"

    @property
    def per_rank(self) -> int:
        """Stages on each rank."""
        return self.stages_per_rank or (1 if self.schedule in self.SINGLE else 2)


@dataclass
class Plan:
    """The parallelism of a run."""

    name: str = "single"
    """Name in logs and checkpoints."""
    pipeline: int | Literal["auto"] = 1
    """Ranks over which the blocks are distributed as pipeline stages; a rank may hold several stages."""
    replicate: int | Literal["auto"] = 1
    """Copies of the model, each trained on different samples."""
    shard: int | Literal["auto"] = 1
    """Ranks over which parameters, gradients and optimizer state are sharded, each with different samples."""
    tensor: int | Literal["auto"] = 1
    """Ranks over which the matrices of every layer are split."""
    sequence_parallel: bool = False
    """Split the activations between the matrices of a block over the tensor ranks, by sequence position."""
    data_parallel: Literal["ddp", "fsdp", "deepspeed"] = "ddp"
    """Engine that reduces gradients over data ranks: DistributedDataParallel, FSDP2, or DeepSpeed ZeRO."""
    precision: Dtype = "fp32"
    """Compute type; weights and optimizer state stay fp32. fp16 scales the loss dynamically."""
    tf32: bool = False
    """Allow TensorFloat-32 in fp32 matrix products (CUDA only)."""
    deterministic: bool = False
    """Use deterministic kernels only (slower on CUDA)."""
    compile: bool = False
    """Compile each block with ``torch.compile``."""
    compile_backend: str = "inductor"
    """Backend of ``torch.compile``; ``torch.compiler.list_backends()`` lists them."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    """Mode of the backend inductor: what it does for speed beyond its default, at the cost of memory or of time for
    compilation; null is its default."""
    recompute: Literal["none", "selective", "full"] = "none"
    """Activations that are recomputed in the backward pass instead of being kept: ``none`` of them, all but matrix
    products and attention (``selective``), or everything in a block but its input (``full``)."""
    ddp: DDPOptions = field(default_factory=DDPOptions)
    """Options of DistributedDataParallel."""
    fsdp: FSDPOptions = field(default_factory=FSDPOptions)
    """Options of FSDP2, or the path of a JSON or YAML file with transformers' ``fsdp_config``."""
    pipelining: PipelineOptions = field(default_factory=PipelineOptions)
    """Options of pipeline stages."""
    deepspeed: DeepSpeedOptions | str = field(default_factory=DeepSpeedOptions)
    """Options of DeepSpeed ZeRO, or the path of a DeepSpeed JSON file, which also sets ``data_parallel: deepspeed``."""

    def __post_init__(self) -> None:
        sizes = {axis: getattr(self, axis) for axis in AXES}
        if isinstance(self.deepspeed, str):
            self.data_parallel = "deepspeed"
        problems = []
        if sum(size == "auto" for size in sizes.values()) > 1:
            problems.append(f"only one degree may be auto, got {sizes}; give the others a number")
        problems += [
            f"{axis}={n} must be at least 1; write 1 or more, or auto"
            for axis, n in sizes.items()
            if n != "auto" and n < 1
        ]
        problems += self._contradictions()
        refuse(problems)

    def _contradictions(self) -> list[str]:
        problems = []
        model_parallel = self.pipeline != 1 or self.tensor != 1
        if self.shard != 1 and self.data_parallel == "ddp":
            problems.append(
                f"shard={self.shard} cannot be combined with data_parallel=ddp, which keeps whole copies; "
                "write data_parallel: fsdp, or replicate instead of shard"
            )
        if model_parallel and self.replicate != 1 and self.data_parallel == "ddp":
            problems.append(
                "data_parallel=ddp cannot be combined with pipeline or tensor ranks: it refuses split parameters and "
                "miscounts gradients of zero-bubble schedules; write data_parallel: fsdp"
            )
        if self.data_parallel == "deepspeed":
            if self.pipeline != 1:
                problems.append(
                    f"pipeline={self.pipeline} cannot be combined with data_parallel=deepspeed: ZeRO 2 and 3 would "
                    "reduce gradients and gather parameters with every micro-batch; use plan=3d_zero1, which "
                    "shards the optimizer state and reduces once per step"
                )
            if self.tensor != 1:
                problems.append(
                    f"tensor={self.tensor} cannot be combined with data_parallel=deepspeed; use plan=3d_zero1"
                )
            if self.compile:
                problems.append("compile=true cannot be combined with data_parallel=deepspeed; set it to false")
        if (
            self.data_parallel == "fsdp"
            and self.pipeline != 1
            and self.shard != 1
            and (self.fsdp.reshard_after_forward or self.fsdp.reduce_every_micro_batch)
        ):
            problems.append(
                f"shard={self.shard} with pipeline={self.pipeline} needs fsdp.reshard_after_forward=false and "
                "fsdp.reduce_every_micro_batch=false: every micro-batch would gather parameters and reduce gradients "
                "again; set both to false, as plan=3d_zero1 does"
            )
        if not self.compile and (self.compile_mode is not None or self.compile_backend != "inductor"):
            name = "compile_mode" if self.compile_mode is not None else "compile_backend"
            problems.append(
                f"{name}={getattr(self, name)!r} compiles nothing without compile=true; set it, or leave this out"
            )
        if self.compile_mode is not None and self.compile_backend != "inductor":
            problems.append(
                f"compile_mode={self.compile_mode!r} is of the backend inductor, and compile_backend="
                f"{self.compile_backend!r}; leave one of them out"
            )
        if self.sequence_parallel and self.tensor == 1:
            problems.append("sequence_parallel=true splits activations over tensor ranks, but tensor=1; set tensor")
        if self.fsdp.offload and self.data_parallel != "fsdp":
            problems.append(
                f"fsdp.offload=true cannot be combined with data_parallel={self.data_parallel}; "
                "write data_parallel: fsdp"
            )
        return problems

    @property
    def uses_deepspeed(self) -> bool:
        return self.data_parallel == "deepspeed"

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
        """Number of processes to start if the user gives none: all ``devices`` for an auto degree, else what the plan
        needs."""
        sizes = [getattr(self, axis) for axis in AXES]
        fixed = prod(size for size in sizes if size != "auto")
        return max(devices // fixed, 1) * fixed if "auto" in sizes else fixed
