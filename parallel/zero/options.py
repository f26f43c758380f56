"""The DeepSpeed ZeRO options that a recipe may set (``plan.deepspeed``), under DeepSpeed's own names. Offload options
that do not fit the ZeRO stage are refused.

``deepspeed_json.py`` turns them into DeepSpeed's JSON. Batch size, clipping, precision, optimizer and schedule are not
options here, since the recipe sets them elsewhere. Neither torch nor DeepSpeed is imported, because checking a recipe
needs neither.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Literal

from ...errors import refuse

Auto = Literal["auto"]
LEAST_BUCKET = 4_000_000
"""Elements of one gradient reduction, for models of a hidden size below 2,000."""


@dataclass
class OffloadOptimizer:
    """Where optimizer state and fp32 weights are kept, and where the optimizer steps."""

    device: Literal["none", "cpu", "nvme"] = "none"
    """Device of the optimizer state: none keeps it on the accelerator, cpu needs stage 1 or more, nvme stage 3."""
    nvme_path: str | None = None
    """Folder on a fast local disk, for nvme; variables (``$TMPDIR``) are those of the machine that trains."""
    pin_memory: bool = True
    """Page-locked CPU memory: faster transfers, memory that nothing else can use."""
    buffer_count: int = 4
    """nvme: buffers in flight; at least one for each state tensor, the weight and the gradient (4 for AdamW)."""
    pipeline_read: bool = False
    """nvme: read the next tile while this one is computed."""
    pipeline_write: bool = False
    """nvme: write the previous tile while this one is computed."""
    fast_init: bool = False
    """nvme: write the initial state in large pieces."""
    ratio: float = 1.0
    """Share of the state that is offloaded (less than 1 needs stage 3)."""

    def __post_init__(self) -> None:
        self.nvme_path = os.path.expandvars(self.nvme_path) if self.nvme_path else None
        problems = _nvme_problems(self.device, self.nvme_path)
        problems += _positive(self, "buffer_count")
        if not 0 <= self.ratio <= 1:
            problems.append(f"ratio={self.ratio} must lie between 0 and 1; 1.0 offloads everything")
        refuse(problems)


@dataclass
class OffloadParam:
    """Where parameters are kept between their uses (stage 3)."""

    device: Literal["none", "cpu", "nvme"] = "none"
    """Device of the parameters; none keeps them on the accelerator."""
    nvme_path: str | None = None
    """Folder on a fast local disk, for nvme; variables (``$TMPDIR``) are those of the machine that trains."""
    pin_memory: bool = True
    """Page-locked CPU memory: faster transfers, memory that nothing else can use."""
    buffer_count: int = 5
    """nvme: buffers in flight."""
    buffer_size: int = 100_000_000
    """nvme: elements of one buffer; the largest parameter's shard must fit."""
    max_in_cpu: int = 1_000_000_000
    """nvme: elements that may stay in CPU memory."""

    def __post_init__(self) -> None:
        self.nvme_path = os.path.expandvars(self.nvme_path) if self.nvme_path else None
        problems = _nvme_problems(self.device, self.nvme_path)
        problems += _positive(self, "buffer_count", "buffer_size")
        if self.max_in_cpu < 0:
            problems.append(f"max_in_cpu={self.max_in_cpu} must not be negative; write 0 or more")
        refuse(problems)


@dataclass
class Aio:
    """Asynchronous reads and writes of nvme offload (libaio)."""

    block_size: int = 1_048_576
    """Bytes of one request."""
    queue_depth: int = 8
    """Requests in flight."""
    intra_op_parallelism: int = 1
    """Threads per request; ``thread_count`` in older versions of DeepSpeed."""
    single_submit: bool = False
    """Submit requests one at a time instead of in batches."""
    overlap_events: bool = True
    """Submit new requests while earlier ones complete."""
    use_gds: bool = False
    """GPUDirect Storage: transfer between disk and GPU without the CPU."""

    def __post_init__(self) -> None:
        refuse(_positive(self, "block_size", "queue_depth", "intra_op_parallelism"))


@dataclass
class Fp16:
    """Dynamic loss scale of ``plan.precision=fp16``."""

    loss_scale: float = 0.0
    """A fixed scale; 0 makes the scale dynamic."""
    initial_scale_power: int = 16
    """The first scale is 2 to this power; raise it when the log shows overflows at scale 1."""
    loss_scale_window: int = 1000
    """Steps without overflow before the scale doubles."""
    hysteresis: int = 2
    """Overflows before the scale halves."""
    consecutive_hysteresis: bool = False
    """Count only consecutive overflows for ``hysteresis``."""
    min_loss_scale: int = 1
    """Lowest value of the scale."""

    def __post_init__(self) -> None:
        problems = _positive(self, "loss_scale_window", "hysteresis", "min_loss_scale")
        if self.loss_scale < 0:
            problems.append(f"loss_scale={self.loss_scale} must not be negative; 0 adapts it")
        if not 0 <= self.initial_scale_power <= 32:
            problems.append(f"initial_scale_power={self.initial_scale_power} must lie between 0 and 32; 16 is usual")
        refuse(problems)


@dataclass
class DeepSpeedOptions:
    """ZeRO (https://arxiv.org/abs/1910.02054) by DeepSpeed. ``auto`` follows the model's hidden size h."""

    stage: Literal[0, 1, 2, 3] = 2
    """State that is sharded over data ranks: 0 none, 1 optimizer state, 2 gradients too, 3 parameters too."""
    offload_optimizer: OffloadOptimizer = field(default_factory=OffloadOptimizer)
    """ZeRO-Offload (https://arxiv.org/abs/2101.06840): keep optimizer state off the accelerator and step there."""
    offload_param: OffloadParam = field(default_factory=OffloadParam)
    """ZeRO-Infinity (https://arxiv.org/abs/2104.07857): keep parameters in CPU memory or on disk."""
    reduce_bucket_size: int | Auto = "auto"
    """Elements of one gradient reduction; auto is h * h, and at least 4 million."""
    allgather_bucket_size: int = 500_000_000
    """Stages 1 and 2: elements of one all-gather of updated weights."""
    stage3_prefetch_bucket_size: int | Auto = "auto"
    """Stage 3: elements fetched ahead of their use; auto is 0.9 * h * h."""
    stage3_param_persistence_threshold: int | Auto = "auto"
    """Stage 3: parameters smaller than this stay on every rank; auto is 10 * h."""
    stage3_max_live_parameters: int = 1_000_000_000
    """Stage 3: most parameters that may be gathered on a rank at once; lower it if memory runs out."""
    stage3_max_reuse_distance: int = 1_000_000_000
    """Stage 3: keep a parameter gathered if it is used again within this many parameters."""
    sub_group_size: int = 1_000_000_000
    """Stage 3: parameters that are stepped at once; with nvme, their state must fit in CPU memory."""
    overlap_comm: bool | Auto = "auto"
    """Reduce gradients during the backward pass, which needs 4.5 times the buckets; auto does so in stage 3 only."""
    contiguous_gradients: bool = True
    """Copy gradients into one buffer, which reduces fragmentation."""
    reduce_scatter: bool = True
    """Stages 1 and 2: reduce each gradient to its owner instead of to all ranks."""
    use_multi_rank_bucket_allreduce: bool = False
    """Stages 1 and 2: reduce whole buckets to all ranks, of which each takes its part. This needs fewer messages, but
    sends half as many bytes again as ZeRO needs (DeepSpeed's own default is true)."""
    allgather_partitions: bool = True
    """Stages 1 and 2: gather updated weights by one all-gather instead of broadcasts."""
    round_robin_gradients: bool = False
    """Stages 1 and 2 with offload: let ranks copy their gradients in parallel."""
    communication_data_type: Literal["fp32", "bf16", "fp16"] | None = None
    """Type in which gradients are reduced; null is the compute type."""
    grad_accum_dtype: Literal["fp32", "bf16", "fp16"] | Auto = "auto"
    """Type in which gradients of micro-batches are added up; auto is fp32 (stage 0: the compute type)."""
    fp16: Fp16 = field(default_factory=Fp16)
    """Loss scale of ``plan.precision=fp16``."""
    zero_allow_untested_optimizer: bool | Auto = "auto"
    """Allow optimizers that DeepSpeed does not list; auto allows those that update every element independently (SGD,
    Lion ...), because shards do not change their updates."""
    zero_force_ds_cpu_optimizer: bool | Auto = "auto"
    """Step by DeepSpeed's CPU kernels under ``offload_optimizer``; auto does so for AdamW, Adam and Lion, which have
    one."""
    use_node_local_storage: bool = False
    """Let DeepSpeed write its own files on every node, for nodes without a shared file system."""
    aio: Aio = field(default_factory=Aio)
    """Asynchronous file access of nvme offload."""

    def __post_init__(self) -> None:
        problems = _positive(
            self, "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_max_live_parameters"
        )
        for name in ("stage3_prefetch_bucket_size", "stage3_param_persistence_threshold", "stage3_max_reuse_distance"):
            value = getattr(self, name)
            if value != "auto" and value < 0:
                problems.append(f"{name}={value} must not be negative; write 0 or more, or auto")
        problems += offload_problems(
            self.stage,
            self.offload_optimizer.device,
            self.offload_param.device,
            self.offload_optimizer.ratio,
        )
        if self.stage == 0 and self.grad_accum_dtype == "fp32":
            problems.append(
                "grad_accum_dtype=fp32 needs stage 1 or more: without a ZeRO optimizer DeepSpeed accumulates gradients "
                "in the compute type; write auto"
            )
        refuse(problems)


def offload_problems(stage: int, optimizer: str, param: str, ratio: float = 1.0) -> list[str]:
    """Problems of offload in a stage, as ``field=value why; fix`` lines; also used for a user's own JSON."""
    problems = []
    if optimizer != "none" and stage < 1:
        problems.append(
            f"offload_optimizer.device={optimizer} needs stage 1 or more, got stage {stage}: only a ZeRO optimizer "
            "keeps its state elsewhere; raise stage, or write none"
        )
    elif optimizer == "nvme" and stage < 3:
        problems.append(
            f"offload_optimizer.device=nvme needs stage 3, got stage {stage}; write cpu, or stage: 3 (plan=zero3_nvme)"
        )
    if param != "none" and stage < 3:
        problems.append(
            f"offload_param.device={param} needs stage 3, got stage {stage}: lower stages keep whole parameters on "
            "every rank; write stage: 3, or none"
        )
    if ratio < 1.0 and stage < 3 and optimizer != "none":
        problems.append(f"offload_optimizer.ratio={ratio} needs stage 3, got stage {stage}; write 1.0")
    return problems


def _nvme_problems(device: str, path: str | None) -> list[str]:
    if device == "nvme" and not path:
        return ["nvme_path=null is needed by device nvme; give a folder on a fast local disk"]
    return []


def _positive(options: object, *names: str) -> list[str]:
    values = {name: getattr(options, name) for name in names}
    fix = "write 1 or more"
    return [
        f"{name}={value} must be at least 1; {fix}" for name, value in values.items() if value != "auto" and value < 1
    ]
