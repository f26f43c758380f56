"""The apply sequence: what is done to a model, in which order, and why in that order.

1. recompute   before compile, so that the compiled block holds the recomputation
2. compile     per block: one graph serves all blocks, and comes before a wrapper hooks into the blocks
3. materialise the module leaves the meta device and takes its weights, one tensor at a time
4. replicate   DistributedDataParallel last: it registers hooks on the parameters that exist then
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedModel

from ..models.family import ModelFamily
from .mesh import Mesh
from .plan import Plan
from .strategy import Weights


def apply(model: PreTrainedModel, family: ModelFamily, plan: Plan, mesh: Mesh, weights: Weights) -> nn.Module:
    """Spread ``model`` (on the meta device) over ``mesh``; returns what a forward pass is called on."""
    if plan.recompute == "full":
        recompute(model)
    if plan.compile:
        for block in model.get_submodule(family.blocks).children():
            block.compile(dynamic=False)
    materialise(model, mesh.device, weights)
    return replicate(model, plan, mesh) if mesh.degrees.replicate > 1 else model


def recompute(model: PreTrainedModel) -> None:
    """Keep only each block's input; recompute the rest in the backward pass (https://arxiv.org/abs/1604.06174)."""
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def materialise(model: PreTrainedModel, device: torch.device, weights: Weights) -> None:
    """Allocate ``model`` on ``device`` and fill it from ``weights``.

    Raises:
        RuntimeError: a tensor of the model is not among ``weights``.
    """
    model.to_empty(device=device)
    model.tie_weights()  # to_empty makes new parameters, which unties them
    targets: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, tensor in weights:
            targets.pop(name).copy_(tensor)
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
