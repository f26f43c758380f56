"""Choose which linear layers of a model are quantised, and replace them in place on the meta device. Also give the
other frozen parameters the type that the recipe asks for.
"""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from transformers import PreTrainedModel

from ...errors import Problem, UserError
from ..family import ModelFamily
from ..find_blocks import heads_of
from ..weight_files import Stored
from .cpu_modules import mark_host_modules, within
from .eight_bits import EightBits
from .four_bits import FourBits
from .number_format import Format
from .quantised_layer import KINDS, WEIGHT, layer_sizes, quantise_layer
from .quantization_config import FOUR_BITS, TORCHAO, QuantizationConfig
from .torchao_numbers import GroupIntegers, RowNumbers

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def format_of(config: QuantizationConfig) -> Format:
    """The number format that a recipe asks for."""
    if config.method in FOUR_BITS:
        return FourBits(config.method, config.group_size, config.double)
    if config.method == "torchao_int4":
        return GroupIntegers(config.group_size)
    if config.method.startswith(TORCHAO):
        return RowNumbers(config.method.removeprefix(TORCHAO))
    return EightBits(config.threshold)


def quantise(
    model: PreTrainedModel, config: QuantizationConfig, family: ModelFamily, stored: Mapping[str, Stored] | None = None
) -> None:
    """Keep the frozen linear layers of ``model`` in quantised form, and other frozen parameters in ``other_dtype``.

    Args:
        model: on the meta device, with its adapters.
        family: with the parts of ``model``.
        stored: the weights that their folder holds in quantised form; None chooses the layers here.

    Raises:
        UserError: no layer is left, ``skip`` or ``on_cpu`` names none, or a layer does not fit the format.
    """
    compute = DTYPES[config.compute_dtype] if config.compute_dtype else None
    hosts = mark_host_modules(model, config.on_cpu)
    if stored is None:
        form = format_of(config)
        for path in layers_of(model, config.skip, family, form):
            if not within(path, hosts):
                quantise_layer(model.get_submodule(path), form, compute)
    for name, entry in (stored or {}).items():
        layer = model.get_submodule(name.rpartition(".")[0])
        if type(layer) not in KINDS or layer.get_parameter(WEIGHT).requires_grad:
            but = "this recipe trains it" if type(layer) in KINDS else "it is not a plain linear layer"
            why = f"hold {name} quantised, but {but}"
            fix = "leave it out of model.adapter.modules_to_save, or use the model before it was quantised"
            raise UserError(Problem("model.weights", why, fix, str(entry.file.parent)))
        quantise_layer(layer, entry.form, compute)
    keep_others_in(model, DTYPES[config.other_dtype])


def keep_others_in(model: nn.Module, dtype: torch.dtype) -> None:
    """Give the frozen floating-point parameters of ``model`` a type; tied ones stay tied."""
    changed: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, one in module._parameters.items():
            if one is not None and not one.requires_grad and one.is_floating_point() and one.dtype != dtype:
                module._parameters[name] = changed.setdefault(id(one), nn.Parameter(one.to(dtype), False))


def layers_of(
    model: PreTrainedModel,
    skip: list[str],
    family: ModelFamily,
    form: Format,
    key: str = "model.quantization",
    trained: bool = False,
) -> list[str]:
    """Paths of the layers that are quantised, in the order of the model.

    Args:
        skip: names of layers that are left out.
        key: part of the recipe that asks for it.
        trained: take layers that are trained, too.

    Raises:
        UserError: as for ``quantise``.
    """
    linear = [path for path, module in model.named_modules() if type(module) in KINDS]
    _refuse_unmatched(skip, linear, key)
    uses = Counter(id(one) for module in model.modules() for one in module._parameters.values() if one is not None)
    kept = [*_kept_in_fp32(model)]
    found = []
    for path in linear:
        weight = model.get_submodule(path).get_parameter(WEIGHT)
        named = _named(path, skip) or any(re.search(pattern, path) for pattern in kept)
        if not (
            named or (weight.requires_grad and not trained) or uses[id(weight)] > 1 or outside(path, model, family)
        ):
            found.append(path)
    if not found:
        why = f"leaves no layer of {family.title} to be quantised: it has {len(linear)} linear layers outside of heads"
        raise UserError(Problem(key, why, f"leave {key} out, or skip less", skip))
    for path in found:
        if why := form.flaw(*layer_sizes(model.get_submodule(path))):
            fix = f"leave it as it is: {key}.skip=[{path.rpartition('.')[2]}]"
            raise UserError(Problem(key, f"cannot hold {path}: {why}", fix))
    return found


def outside(path: str, model: PreTrainedModel, family: ModelFamily) -> bool:
    """Whether a layer is a head, lies outside of the backbone, or is one that no loss reaches."""
    prefix = model.base_model_prefix
    beyond = bool(prefix) and hasattr(model, prefix) and not path.startswith(f"{prefix}.")
    unused = any(fnmatch.fnmatch(f"{path}.{WEIGHT}", pattern) for pattern in family.unused)
    return beyond or unused or path in [name for name, _ in heads_of(model, family)]


def _kept_in_fp32(model: PreTrainedModel) -> Iterator[str]:
    """Patterns of the modules that an architecture keeps in fp32, such as T5's ``wo``, whose type its code asks for."""
    for module in model.modules():
        for attribute in ("_keep_in_fp32_modules", "_keep_in_fp32_modules_strict"):
            for name in getattr(module, attribute, None) or ():
                yield rf"(^|\.){name}(\.|$)"


def _named(path: str, names: list[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") or fnmatch.fnmatch(path, name) for name in names)


def _refuse_unmatched(skip: list[str], linear: list[str], key: str) -> None:
    for name in skip:
        if not any(_named(path, [name]) for path in linear):
            endings = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in linear))
            raise UserError(Problem(f"{key}.skip", "matches no layer", f"linear layers end in {endings}", name))
