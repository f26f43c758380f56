"""The apply sequence: what is done to a model, in which order, and why in that order.

1. pipeline    first: what a rank does not hold needs nothing else (``pipeline/cut.py``, before this)
2. tensor      before anything wraps the matrices: wrappers must see the split parameters
3. recompute   before compile, so that the compiled block holds the recomputation
4. compile     per block: one graph serves all blocks, and comes before a wrapper hooks into the blocks
5. FSDP        shards what is left of each parameter on this rank, still without memory behind it
6. materialise the module leaves the meta device and takes its part of the weights, one tensor at a time
7. DDP         last: it registers hooks on the parameters that exist then
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from ..models.build_model import WeightSource
from ..models.family import ModelFamily
from .fsdp import shard
from .mesh import Mesh
from .plan import Plan
from .recompute import recompute
from .tensor import parallelize_tensor, tie
from .tensor_shards import copy_part


def spread(root: nn.Module, part: PreTrainedModel, family: ModelFamily, plan: Plan, mesh: Mesh) -> None:
    """Steps 2 to 5, in place, on the meta device.

    Args:
        root: what a forward pass is called on: ``part`` itself, or a pipeline stage around it.
        part: the model, or this stage's part of it.
    """
    if mesh.degrees.tensor > 1:
        assert mesh.axes is not None
        parallelize_tensor(part, family, mesh.axes["tensor"], plan.sequence_parallel)
    blocks = list(part.get_submodule(family.blocks).children())
    if plan.recompute != "none":
        recompute(blocks, plan.recompute)
    if plan.compile:
        for block in blocks:
            block.compile(dynamic=False)
    if plan.data_parallel == "fsdp":
        shard(root, part, family, plan, mesh)


def materialise(
    part: PreTrainedModel, device: torch.device, weights: WeightSource, sources: dict[str, str] | None = None
) -> None:
    """Allocate ``part`` on ``device`` and fill this rank's piece of every tensor from ``weights``.

    Args:
        sources: for tensors of ``part`` that are called otherwise in the whole model, their name there.

    Raises:
        RuntimeError: a tensor of the model is not among ``weights``.
    """
    part.to_empty(device=device)
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


def replicate(model: nn.Module, plan: Plan, mesh: Mesh) -> DistributedDataParallel:
    """One copy per replicate rank. Nothing is broadcast at the start: every rank computed the same weights."""
    return DistributedDataParallel(
        model,
        device_ids=[mesh.device] if mesh.device.type == "cuda" else None,
        process_group=mesh.data_group,
        forward_sync_buffers=False,
        init_sync=False,
        bucket_cap_mb=plan.ddp.bucket_cap_mb,
        gradient_as_bucket_view=plan.ddp.gradient_as_bucket_view,
        find_unused_parameters=plan.ddp.find_unused_parameters,
    )
