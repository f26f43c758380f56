"""The initial values of LoRA adapters: random values from a seed, or values read from a folder in peft's format. Also
merge the adapters of ``model.merged_adapters`` into the base model's weights.

The main function returns a source of weights that yields the base model's weights and the adapters' initial values by
name. Each rank asks for the weights that it holds, so other weights are neither drawn nor read. Random values depend
only on the seed and the parameter's name.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .adapter_config import AdapterConfig, MergedAdapter
from .adapters import plan_of
from .initial_weights import seed_of
from .low_rank import DOWN, MAGNITUDE, UP, adapted_layers, adapter_in, is_part
from .merge_adapters import Delta, delta_of, merged_tensor, row_norms
from .peft_folder import folder_plan, peft_folder
from .weight_files import Stored

if TYPE_CHECKING:
    from .build_model import WeightSource


def with_adapters(
    base: WeightSource, model: PreTrainedModel, config: AdapterConfig, seed: int, seen: WeightSource | None = None
) -> WeightSource:
    """A source of the weights of ``base`` and of the initial values of the adapters of ``model``.

    Args:
        model: on the meta device, with its adapters.
        seen: gives the complete weights of adapted layers, if ``base`` gives only parts of them.

    Raises:
        UserError: the folder of ``config`` does not fit; this is known before any tensor is read.
    """
    layers, held = dict(adapted_layers(model)), _names_in_folder(model)

    @functools.cache
    def folder() -> dict[str, Stored]:
        return peft_folder(config.path, "model.adapter.path").tensors(model) if config.path is not None else {}

    if config.plan is None:
        folder()  # else a checkpoint holds the adapters, and the folder may be gone

    def weights(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        stored = folder() if held.intersection(names) else {}
        own = {name for name in names if is_part(name)}
        read = {name: entry for name, entry in stored.items() if name in names}
        for name, entry in read.items():
            yield name, entry.read().to(torch.float32)
        drawn = own - set(read)
        lengths = {f"{name.rpartition('.')[0]}.weight": name for name in drawn if name.endswith(f".{MAGNITUDE}")}
        for name in sorted(drawn - set(lengths.values())):
            yield name, _first(model, name, config.init, seed)
        plain = set(names) - own - set(read)
        if seen is not None and seen is not base and lengths:
            for name, tensor in seen(set(lengths)):
                yield lengths.pop(name), _first_lengths(model, name, layers, tensor, config.init, seed)
        for name, tensor in base(plain | set(lengths)):
            if name in lengths:
                yield lengths[name], _first_lengths(model, name, layers, tensor, config.init, seed)
            if name in plain:
                yield name, tensor

    return weights


def with_merged(base: WeightSource, model: PreTrainedModel, merged: Mapping[str, MergedAdapter]) -> WeightSource:
    """The weights of ``base`` with adapters added to them, one after the other.

    Raises:
        UserError: an adapter does not fit.
    """
    deltas = merged_deltas(model, merged)

    def weights(names: Collection[str]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in base(names):
            for delta in deltas.get(name, ()):
                tensor = merged_tensor(tensor, delta)
            yield name, tensor

    return weights


def merged_deltas(model: PreTrainedModel, merged: Mapping[str, MergedAdapter]) -> dict[str, list[Delta]]:
    """The change of each adapter to each weight of ``model``, in the order of the recipe."""
    found: dict[str, list[Delta]] = {}
    for name, one in merged.items():
        folder = peft_folder(one.path, f"model.merged_adapters.{name}.path")
        plan, tensors = folder_plan(folder, model, None), folder.tensors(model)
        if one.weight != 1 and (plan.saved or plan.dora):
            what = "magnitudes (DoRA)" if plan.dora else "fully trained modules"
            why = f"holds {what}, which replace those of the base and cannot be scaled by a weight"
            raise folder.problem(why, f"leave model.merged_adapters.{name}.weight at 1")
        for path in plan.ranks:
            weight = f"{path}.weight"
            if plan.dora and weight in found:
                why = f"holds magnitudes (DoRA) of {path}, but an earlier adapter has changed this layer"
                raise folder.problem(why, "merge it first, or without the others")
            delta = delta_of(path, plan, _reader(tensors), model.get_submodule(path), one.weight)
            found.setdefault(weight, []).append(delta)
        for stored, entry in tensors.items():
            if not is_part(stored):
                found[stored] = [Delta(instead=entry.rows)]
    return found


def _names_in_folder(model: PreTrainedModel) -> set[str]:
    """Names of the parameters of ``model`` that a folder with its adapters contains."""
    plan = plan_of(model)
    saved = tuple(f"{path}." for path in plan.saved) if plan else ()
    return {name for name, _ in model.named_parameters() if is_part(name) or name.startswith(saved)}


def _reader(tensors: Mapping[str, Stored]) -> Callable[[str], Tensor]:
    return lambda name: tensors[name].read().float()


def _first(model: nn.Module, name: str, init: str, seed: int) -> Tensor:
    """The first values of one of the two matrices; uniform ones are those of a linear layer in torch."""
    part, shape = name.rpartition(".")[2], model.get_parameter(name).shape
    if part == UP and init != "random":
        return torch.zeros(shape)
    generator = torch.Generator().manual_seed(seed_of(seed, name))
    if part == DOWN and init == "gaussian":
        return torch.randn(shape, generator=generator) / shape[0]
    bound = 1 / math.sqrt(shape[1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _first_lengths(
    model: nn.Module, weight: str, layers: Mapping[str, nn.Module], base: Tensor, init: str, seed: int
) -> Tensor:
    """Initial norms of the rows for DoRA: those of the sum of the base weight and the adapter's initial values."""
    path = weight.rpartition(".")[0]
    down, up = (_first(model, f"{path}.{part}", init, seed) for part in (DOWN, UP))
    adapter = adapter_in(layers[path])
    assert adapter is not None
    return row_norms(base, Delta(down, up, adapter.scaling, transposed=not isinstance(layers[path], nn.Linear)))
