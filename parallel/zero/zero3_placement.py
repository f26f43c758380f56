"""Shard a model on the meta device for ZeRO-3 and fill it with weights, one tensor at a time.

``deepspeed.zero.Init`` takes each parameter as soon as its weights are read from files or drawn at random. A rank
therefore never holds more than one whole tensor beside its shards.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...models.build_model import WeightSource


def place_shards(
    model: PreTrainedModel, weights: WeightSource, config: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Replace every parameter of ``model`` by a ZeRO-3 parameter, and every buffer by its value on ``device``.

    Args:
        dtype: compute type, which the shards have.

    Returns:
        This rank's fp32 shard of each trainable parameter by name, because the optimizer's weights must not be made
        from rounded ones; empty if ``dtype`` is fp32.

    Raises:
        RuntimeError: a tensor of the model is not among ``weights``.
    """
    homes = tensor_homes(model)
    masters: dict[str, Tensor] = {}
    swapper = None
    with torch.no_grad():
        for name, full in weights(set(homes)):
            places = homes.pop(name)
            old = getattr(*places[0])
            if not isinstance(old, nn.Parameter):
                for module, key in places:
                    module._buffers[key] = full.to(device)
                continue
            cast = dtype if full.is_floating_point() else full.dtype
            parameter = nn.Parameter(full.to(device, cast).view(old.shape), requires_grad=old.requires_grad)
            swapper = _shard(parameter, config, swapper)
            if dtype != torch.float32 and old.requires_grad:
                masters[name] = own_part(full.view(old.shape), parameter)
            for module, key in places:
                module._parameters[key] = parameter
    if homes:
        raise RuntimeError(f"no values for {sorted(homes)[:5]} ({len(homes)} tensors)")
    return masters


def numbers_to_vectors(model: nn.Module) -> set[str]:
    """Give parameters that are single numbers one dimension, since DeepSpeed cannot send others; returns their names.

    Arithmetic with a vector of one number gives what arithmetic with the number gives.
    """
    names = {name for name, parameter in model.named_parameters() if parameter.ndim == 0}
    for name in names:
        path, _, own = name.rpartition(".")
        module, old = model.get_submodule(path), model.get_parameter(name)
        module._parameters[own] = nn.Parameter(old.detach().view(1), requires_grad=old.requires_grad)
    return names


def tensor_homes(model: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """The (module, attribute) pairs that hold each parameter and buffer, by plain name; tied ones share a name."""
    names = {id(tensor): name for name, tensor in (*model.named_buffers(), *model.named_parameters())}
    homes: dict[str, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                homes.setdefault(names[id(tensor)], []).append((module, key))
    return homes


def own_part(full: Tensor, parameter: nn.Parameter) -> Tensor:
    """This rank's shard of ``full``, with the length of the shards of ``parameter``; the last is padded with zeros."""
    group = parameter.ds_process_group  # type: ignore[attr-defined]
    length = parameter.partition_numel()  # type: ignore[attr-defined]
    flat = full.flatten()
    part = flat[group.rank() * length : (group.rank() + 1) * length]
    return nn.functional.pad(part, (0, length - part.numel())).clone()


def full_shapes(named: list[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of full shape that take no memory, for the optimizer factory.

    The factory tells matrices from vectors by shape, and a ZeRO-3 parameter has an empty one.
    """
    for name, parameter in named:
        shape = parameter.ds_shape  # type: ignore[attr-defined]
        yield name, nn.Parameter(torch.zeros((), device=parameter.device).expand(shape))


def _shard(parameter: nn.Parameter, config: dict[str, Any], swapper: Any) -> Any:
    """Partition one parameter in place.

    Returns:
        The object that swaps parameters to disk, which all parameters share.
    """
    import deepspeed

    holder = nn.Module()
    holder.register_parameter("parameter", parameter)
    return deepspeed.zero.Init(module=holder, config_dict_or_path=config, param_swapper=swapper).param_swapper
