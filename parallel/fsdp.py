"""Apply torch's FSDP2 to a model: shard parameters, gradients and optimizer state over ranks, or keep copies on several
ranks, as the plan says. Parameters are gathered for text generation, and freed after evaluations.

FSDP averages gradients over ranks by default. This is switched off: the loss is already divided by the number of label
tokens in the global batch, so gradients must be summed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed._composable.replicate_with_fsdp import replicate
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel

from ..errors import Problem, UserError
from ..models.family import ModelFamily
from ..models.find_blocks import blocks_of, embeddings_of, heads_of
from .mesh import Mesh
from .plan import FSDPOptions, Plan
from .precision import DTYPES


def shard(root: nn.Module, part: PreTrainedModel, family: ModelFamily, plan: Plan, mesh: Mesh) -> None:
    """Apply FSDP2 in place. Each wrapped module gathers and frees its own parameters; ``root`` does so for the rest.

    Args:
        root: the module that forward passes call.
        part: the model (or a pipeline stage of it) inside ``root``, on the meta device.
    """
    wrap = _wrapper(plan, mesh)
    wrapped = _modules_to_wrap(part, family, plan.fsdp)
    for module in wrapped:
        wrap(module)
    # The head stays gathered, because it is used last in the forward pass and first in the backward pass.
    for found, reshard in ((embeddings_of(part, family), None), (heads_of(part, family), False)):
        for _, module in found:
            if _wrappable(part, module):
                wrap(module, reshard_after_forward=reshard)
    wrap(root, ignored_params=scalars_of(root))
    _prefetch(wrapped, plan.fsdp)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)


def scalars_of(root: nn.Module) -> set[nn.Parameter]:
    """Parameters that are single numbers, such as a temperature. FSDP2 cannot shard them, so every rank keeps them, and
    the strategy sums their gradients."""
    return {parameter for parameter in root.parameters() if parameter.ndim == 0}


def gather_once(root: nn.Module, options: FSDPOptions, last: bool) -> None:
    """Set, before a micro-batch, whether its backward pass reduces gradients and frees gathered parameters.

    The last micro-batch of a step does both. Earlier ones skip the reduction if the plan reduces once per step, and
    then keep parameters gathered unless the plan frees them after a forward pass.
    """
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(last or options.reduce_every_micro_batch)
        root.set_reshard_after_backward(last or options.reshard_after_forward or options.reduce_every_micro_batch)


def gather(root: nn.Module) -> None:
    """Gather the parameters that ``root`` itself shards, until ``reshard``."""
    if isinstance(root, FSDPModule):
        root.unshard()


def reshard(root: nn.Module) -> None:
    """Free gathered parameters after an evaluation, since they would be outdated after the next optimizer step."""
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _wrapper(plan: Plan, mesh: Mesh) -> Callable[..., Any]:
    """``fully_shard`` or ``replicate`` with the plan's options."""
    assert mesh.axes is not None
    options = plan.fsdp
    policies = {"mp_policy": _precision(plan), "offload_policy": _offload(options)}
    if mesh.degrees.shard == 1 and mesh.degrees.replicate > 1:
        # Every rank keeps whole parameters, so none are freed after a forward pass.
        copies: DeviceMesh = mesh.axes["replicate"]
        return lambda module, reshard_after_forward=None, **others: replicate(module, mesh=copies, **policies, **others)
    names = ("replicate", "shard") if mesh.degrees.replicate > 1 else ("shard",)
    submesh: DeviceMesh = mesh.axes[names]
    apply = partial(fully_shard, mesh=submesh, **policies)
    if not options.reshard_after_forward:
        return lambda module, reshard_after_forward=None, **others: apply(module, reshard_after_forward=False, **others)
    return apply


def _precision(plan: Plan) -> MixedPrecisionPolicy:
    options = plan.fsdp
    compute = options.param_dtype or plan.precision
    return MixedPrecisionPolicy(
        param_dtype=None if compute == "fp32" else DTYPES[compute],
        reduce_dtype=None if compute == options.reduce_dtype == "fp32" else DTYPES[options.reduce_dtype],
        output_dtype=DTYPES[options.output_dtype] if options.output_dtype else None,
        cast_forward_inputs=options.cast_forward_inputs,
    )


def _offload(options: FSDPOptions) -> OffloadPolicy:
    if not options.offload:
        return OffloadPolicy()
    return CPUOffloadPolicy(pin_memory=options.pin_memory and torch.accelerator.is_available())


def _modules_to_wrap(part: PreTrainedModel, family: ModelFamily, options: FSDPOptions) -> list[nn.Module]:
    if options.min_num_params is not None:
        return _large(part, options.min_num_params)
    if not options.transformer_layer_cls_to_wrap:
        return blocks_of(part, family)
    found = [module for module in part.modules() if type(module).__name__ in options.transformer_layer_cls_to_wrap]
    missing = set(options.transformer_layer_cls_to_wrap) - {type(module).__name__ for module in found}
    if missing:
        known = sorted({type(module).__name__ for module in part.modules() if list(module.parameters())})
        raise UserError(
            Problem(
                "plan.fsdp.transformer_layer_cls_to_wrap",
                f"the model has no module of class {', '.join(sorted(missing))}",
                f"its classes are {', '.join(known)}",
                options.transformer_layer_cls_to_wrap,
            )
        )
    return found


def _large(part: nn.Module, least: int) -> list[nn.Module]:
    """Modules to wrap, innermost first: each has at least ``least`` parameters outside the ones wrapped inside it.

    Tied parameters are left to the root, so that they are gathered for all modules that use them.
    """
    taken: list[nn.Module] = []
    tied = _tied(part)

    def unwrapped(module: nn.Module) -> int:
        """Wrap inside ``module``, and count its parameters that stay outside of wrapped modules."""
        own = list(module.parameters(recurse=False))
        count = sum(parameter.numel() for parameter in own) + sum(unwrapped(child) for child in module.children())
        if any(id(parameter) in tied for parameter in module.parameters()):
            return count
        if count >= least and module is not part and not isinstance(module, nn.ModuleList):
            taken.append(module)
            return 0
        return count

    unwrapped(part)
    return taken


def _wrappable(part: PreTrainedModel, module: nn.Module) -> bool:
    """Whether a module has parameters here, none of them tied, and is not wrapped already."""
    mine = {id(parameter) for parameter in module.parameters()}
    return bool(mine) and not mine & _tied(part) and not isinstance(module, FSDPModule)


def _tied(part: nn.Module) -> set[int]:
    """Identities of the parameters that several modules use."""
    uses = Counter(id(parameter) for module in part.modules() for parameter in module.parameters(recurse=False))
    return {parameter for parameter, count in uses.items() if count > 1}


def _prefetch(blocks: list[nn.Module], options: FSDPOptions) -> None:
    forward, backward = int(options.forward_prefetch), int(options.backward_prefetch)
    for position, block in enumerate(blocks):
        if forward:
            block.set_modules_to_forward_prefetch(blocks[position + 1 : position + 1 + forward])  # type: ignore[operator]
        if backward:
            ahead = blocks[max(position - backward, 0) : position][::-1]
            block.set_modules_to_backward_prefetch(ahead)  # type: ignore[operator]
