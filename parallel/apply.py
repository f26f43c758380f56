"""Apply a parallelism plan (FSDP, DDP, tensor parallelism ...) to a model on this rank, in a fixed order of steps.

1. pipeline    first, because a rank need not process blocks of other ranks (``pipeline/cut.py``, before this file)
2. tensor      before any wrapper, because wrappers must see the split parameters
3. noise       (dropout and the like) in training only; after tensor, which decides what part of a hidden state this
               rank holds; before recompute and compile, so that both contain the noise
4. recompute   before compile, so that the compiled block contains the recomputation
5. compile     per block, so that one graph serves all blocks; before FSDP, which adds hooks to the blocks
6. FSDP        shards this rank's part of each parameter, while it is on the meta device and takes no memory
7. materialise moves the module off the meta device and loads this rank's part of the weights, one tensor at a time
8. DDP         last, because it registers hooks on the final parameters
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from ..models.attach_noise import add_noise
from ..models.build_model import WeightSource
from ..models.family import ModelFamily
from ..models.find_blocks import blocks_of
from ..models.noise import Noise
from ..models.noise_keys import Part
from ..models.quantization.cpu_modules import empty_on
from .fsdp import shard
from .mesh import Mesh
from .plan import Plan
from .recompute import recompute
from .tensor import parallelize_tensor, tie
from .tensor_shards import copy_part


def parallelize(
    root: nn.Module, part: PreTrainedModel, family: ModelFamily, plan: Plan, mesh: Mesh, noise: Noise | None = None
) -> None:
    """Apply steps 2 to 6 in place, on the meta device.

    Args:
        root: the module that forward passes call: ``part`` itself, or the pipeline stage around it.
        part: the model, or this stage's part of it.
        noise: source of dropout and other noise in training; None if the model is not trained.
    """
    parts: dict[nn.Module, Part] = {}
    if mesh.degrees.tensor > 1:
        assert mesh.axes is not None
        parts = parallelize_tensor(part, family, mesh.axes["tensor"], plan.sequence_parallel)
    if noise is not None:
        add_noise(part, family, noise, parts)
    blocks = blocks_of(part, family)
    if plan.recompute != "none":
        recompute(blocks, plan.recompute, noise)
    if plan.compile:
        for block in blocks:
            block.compile(dynamic=False, backend=plan.compile_backend, mode=plan.compile_mode)
    if plan.data_parallel == "fsdp":
        shard(root, part, family, plan, mesh)


def materialise(
    part: PreTrainedModel, device: torch.device, weights: WeightSource, sources: dict[str, str] | None = None
) -> None:
    """Allocate ``part`` on ``device`` and fill this rank's shard of every tensor from ``weights``.

    Args:
        sources: name in the whole model of each tensor that has another name in ``part``.

    Raises:
        RuntimeError: a tensor of the model is not among ``weights``.
    """
    empty_on(part, device)
    tie(part)  # to_empty makes new parameters, which unties them
    sources = sources or {}
    targets: dict[str, list[Tensor]] = {}
    for name, tensor in (*part.named_parameters(), *part.named_buffers()):
        targets.setdefault(sources.get(name, name), []).append(tensor)
    with torch.no_grad():
        for name, full in weights(set(targets)):
            for target in targets.pop(name):
                copy_part(full, target)
    if targets:
        raise RuntimeError(f"no values for {sorted(targets)[:5]} ({len(targets)} tensors)")


def replicate(model: nn.Module, plan: Plan, mesh: Mesh, find_unused: bool = False) -> DistributedDataParallel:
    """Wrap the model in DDP. Weights are not broadcast at the start, since every rank has computed the same ones.

    Args:
        find_unused: look, in every step, for parameters that the loss does not reach; needed where the family does not
            name them.
    """
    return DistributedDataParallel(
        model,
        device_ids=[mesh.device] if mesh.device.type == "cuda" else None,
        process_group=mesh.data_group,
        forward_sync_buffers=plan.ddp.broadcast_buffers,
        init_sync=False,
        bucket_cap_mb=plan.ddp.bucket_cap_mb,
        gradient_as_bucket_view=plan.ddp.gradient_as_bucket_view,
        find_unused_parameters=plan.ddp.find_unused_parameters or find_unused,
    )
