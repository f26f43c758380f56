"""Tensor parallelism: split the weight matrices of a model's blocks, its embedding and its head over the
tensor-parallel ranks, as far as the model's family describes a split.

The method is that of Megatron-LM (https://arxiv.org/abs/1909.08053). Embedding and head are split over the vocabulary,
and sequence parallelism is optional (https://arxiv.org/abs/2205.05198). The family description of the model says how
each matrix is split. A block has two all-reduces in the forward pass and two in the backward pass, for any number of
projections.

With sequence parallelism, hidden states are split along the sequence before the first block of a model or stage, and
gathered after its last block. Outside of the blocks every rank sees the whole sequence, because transformers' models
compute positions and masks from the length of the embeddings. Pipeline stages therefore exchange whole hidden states.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial
from transformers import PreTrainedModel

from ..models.family import ModelFamily, TensorPlan
from ..models.find_blocks import block_lists, blocks_of, embeddings_of, heads_of
from ..models.noise_keys import Part
from .tensor_adapters import (
    replicate_adapter,
    split_adapter_by_input,
    split_adapter_by_output,
    split_adapter_of_head,
)
from .tensor_styles import (
    Border,
    own_parameters,
    replicate_parameters,
    split_by_input,
    split_by_output,
    split_vocabulary_in,
    split_vocabulary_out,
)


def parallelize_tensor(
    part: PreTrainedModel, family: ModelFamily, mesh: DeviceMesh, sequence_parallel: bool = False
) -> dict[nn.Module, Part]:
    """Split ``part`` (a model on the meta device, or one pipeline stage of it) over ``mesh``, in place.

    Every parameter becomes a DTensor. Logits are DTensors, split over the vocabulary.

    Args:
        mesh: the one-dimensional mesh of the axis ``tensor``.

    Returns:
        For each module of a block, the part of its hidden states on this rank, by which the module draws noise.

    Raises:
        ValueError: the family has no tensor plan, or its sizes do not divide (``check_tensor`` finds both earlier).
        RuntimeError: the plan does not name a module of a block that has parameters.
    """
    plan = family.tensor
    if plan is None:
        raise ValueError(f"the family {family.name} has no tensor plan")
    tied = _untie(part)
    outside, inside = Border(mesh, sequence=False), Border(mesh, sequence=sequence_parallel)
    blocks = blocks_of(part, family)
    borders = _borders(part, family, outside, inside)
    for block, border in zip(blocks, borders, strict=True):
        _split_block(block, plan, part.config, border)
    embeddings, heads = dict(embeddings_of(part, family)), dict(heads_of(part, family))
    in_blocks = {id(module) for block in blocks for module in block.modules()}
    for path, module in part.named_modules():
        if id(module) in in_blocks or not own_parameters(module):
            continue
        if path in embeddings:
            split_vocabulary_in(module, outside)  # type: ignore[arg-type]
        elif path in heads:
            split_vocabulary_out(module, outside)  # type: ignore[arg-type]
            split_adapter_of_head(module, outside)
        else:
            replicate_parameters(module, mesh)
            replicate_adapter(module, outside)
    cut = [block for block, border in zip(blocks, borders, strict=True) if border is inside]
    if sequence_parallel and cut:
        cut[0].register_forward_pre_hook(partial(_split_sequence, inside))
        cut[-1].register_forward_hook(partial(_join_sequence, inside))
    for target, source in tied.items():
        _set(part, target, part.get_parameter(source))
    width = getattr(part.config.get_text_config(), "hidden_size", 0)
    return {
        module: found
        for block, border in zip(blocks, borders, strict=True)
        for module, found in _noise_parts(block, plan, border, width)
    }


def tie(part: PreTrainedModel) -> None:
    """Tie parameters again after ``to_empty``, which gives each module a tensor of its own."""
    for target, source in (getattr(part, "all_tied_weights_keys", None) or {}).items():
        try:
            parameter = part.get_parameter(source)
            part.get_parameter(target)
        except AttributeError:  # the other parameter lies on another pipeline stage
            continue
        _set(part, target, parameter)


@torch.no_grad()
def sum_partial_gradients(parameters: Iterable[Tensor]) -> None:
    """Sum gradients that are partial sums (norms under sequence parallelism, weights shared by all heads), in place.

    Must be called once per step, after the last backward pass and before gradients are read. It is a collective call
    over the tensor ranks, with one message for all parameters of a type.
    """
    waiting: dict[tuple[torch.dtype, torch.device, int, int], list[tuple[Tensor, DTensor, int]]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if isinstance(gradient, DTensor):
            for axis, placement in enumerate(gradient.placements):
                if placement.is_partial():
                    local = gradient._local_tensor
                    key = (local.dtype, local.device, id(gradient.device_mesh), axis)
                    waiting.setdefault(key, []).append((parameter, gradient, axis))
    for group in waiting.values():
        _sum_in_one_message(group)


def _sum_in_one_message(group: list[tuple[Tensor, DTensor, int]]) -> None:
    locals_ = [gradient._local_tensor for _, gradient, _ in group]
    message = torch.cat([local.reshape(-1) for local in locals_])
    _, first, axis = group[0]
    dist.all_reduce(message, group=first.device_mesh.get_group(axis))
    summed = message.split([local.numel() for local in locals_])
    for (parameter, gradient, _), local, values in zip(group, locals_, summed, strict=True):
        assert isinstance(parameter, DTensor)
        parameter.grad = DTensor.from_local(
            values.view_as(local),
            gradient.device_mesh,
            parameter.placements,
            run_check=False,
            shape=parameter.shape,
            stride=parameter.stride(),
        )


def _borders(part: PreTrainedModel, family: ModelFamily, outside: Border, inside: Border) -> list[Border]:
    """The border of each block. Blocks that see whole sequences are the first of the whole model, by their numbers."""
    assert family.tensor is not None
    if not family.tensor.whole_blocks:
        return [inside for _ in blocks_of(part, family)]
    numbers = [int(name) for _, stack in block_lists(part, family) for name, _ in stack.named_children()]
    return [outside if number < family.tensor.whole_blocks else inside for number in numbers]


def _split_block(block: nn.Module, plan: TensorPlan, config: Any, border: Border) -> None:
    ranks, parts = border.mesh.size(), dict(plan.fused)
    one_key_head = plan.key_value_heads is not None and getattr(config, plan.key_value_heads) == 1
    column = plan.column if one_key_head else (*plan.column, *plan.key_value)
    per_head = (*plan.per_head, *plan.key_value) if one_key_head else plan.per_head
    divided = (*plan.divided, plan.groups) if one_key_head and plan.groups else plan.divided
    named: set[int] = set()
    for path, module in block.named_modules():
        if own_parameters(module):
            if path in column:
                split_by_output(module, border.mesh, parts.get(path, 1))
                split_adapter_by_output(module, border, parts.get(path, 1))
                if path in plan.gathered:
                    module.register_forward_hook(lambda _, inputs, output: border.gather_features(output))
            elif path in plan.row:
                split_by_input(module, border, parts.get(path, 1))
                split_adapter_by_input(module, border, parts.get(path, 1))
                if path in plan.scattered:
                    module.register_forward_pre_hook(lambda _, inputs: (border.split_features(inputs[0]),))
            elif path in plan.norms:
                replicate_parameters(module, border.mesh, lambda: border.outside_gradient)
                replicate_adapter(module, border, lambda: border.outside_gradient)
            elif path in per_head:
                replicate_parameters(module, border.mesh, Partial)
                replicate_adapter(module, border, Partial)
            else:
                raise RuntimeError(f"the tensor plan does not name {path} of {type(block).__name__}")
        named.add(id(module))
        if path in plan.inputs:
            module.register_forward_pre_hook(partial(_enter, border), with_kwargs=True)
        for where, attribute in divided:
            if where == path and hasattr(module, attribute):
                _divide(module, attribute, ranks)


def _noise_parts(block: nn.Module, plan: TensorPlan, border: Border, width: int) -> Iterator[tuple[nn.Module, Part]]:
    """For each module, the part of its hidden states on this rank: only some features inside a row projection."""
    row = tuple(f"{path}." for path in plan.row if path not in plan.scattered)
    gathered = tuple(f"{path}." for path in (*plan.column, *plan.key_value, *plan.row))
    groups = max(
        dict(plan.fused).get(path, 1) for path in plan.row
    )  # of heads, which reach the projection of attention
    rank, ranks = border.mesh.get_local_rank(), border.mesh.size()
    for path, module in block.named_modules():
        yield (
            module,
            Part(rank, border, width, f"{path}.".startswith(row), f"{path}.".startswith(gathered), ranks, groups),
        )


def _divide(module: nn.Module, attribute: str, ranks: int) -> None:
    count = getattr(module, attribute)
    if count % ranks:
        raise ValueError(f"{attribute}={count} of {type(module).__name__} does not divide over {ranks} tensor ranks")
    setattr(module, attribute, count // ranks)


def _enter(border: Border, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
    if args:
        return (border.enter(args[0]), *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": border.enter(kwargs["hidden_states"])}


def _split_sequence(border: Border, module: nn.Module, args: tuple) -> tuple:
    length, ranks = args[0].shape[1], border.mesh.size()
    # Prompts of any length and steps of one token, as in generation, run on whole sequences.
    border.sequence = length % ranks == 0
    if border.sequence:
        return (border.split(args[0]), *args[1:])
    if torch.is_grad_enabled():
        raise ValueError(f"{length} positions do not divide over {ranks} tensor ranks; pad to a multiple of {ranks}")
    return args


def _join_sequence(border: Border, module: nn.Module, args: tuple, output: Any) -> Any:
    if not border.sequence:
        return output
    if isinstance(output, tuple):
        return (border.join(output[0]), *output[1:])
    return border.join(output)


def _untie(part: PreTrainedModel) -> dict[str, str]:
    """Give each tied parameter a tensor of its own, until it is tied again.

    Returns:
        Name of the source of each copy, by the name of the copy.
    """
    found: dict[str, str] = {}
    first: dict[int, str] = {}
    for path, module in part.named_modules():
        for name, parameter in own_parameters(module):
            full = f"{path}.{name}" if path else name
            source = first.setdefault(id(parameter), full)
            if source != full:
                found[full] = source
                module._parameters[name] = nn.Parameter(parameter.detach().clone(), parameter.requires_grad)
    return found


def _set(part: PreTrainedModel, name: str, parameter: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    part.get_submodule(path)._parameters[leaf] = parameter
