"""Add a recipe's LoRA adapters to a model on the meta device, and freeze the other parameters. Other functions list the
adapters and the trained parameters of a model, or switch the adapters off for a while.

Layers are chosen by the rules of peft. A list names the last parts of module paths, a single string is a regular
expression for whole paths, and ``all-linear`` means every linear layer except the heads. Modules in ``modules_to_save``
stay trainable.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

from ..errors import Problem, UserError
from .adapter_config import ALL_LINEAR, RANK, AdapterConfig
from .adapter_plan import AdapterPlan, pattern_key
from .family import ModelFamily
from .find_blocks import heads_of
from .low_rank import adapted_layers, adapter_in, attach, is_linear, is_part
from .peft_folder import folder_plan, peft_folder


def add_adapters(model: PreTrainedModel, config: AdapterConfig, family: ModelFamily) -> AdapterPlan:
    """Give the layers of ``config`` adapters, and freeze all parameters but theirs and those of ``modules_to_save``.

    Args:
        model: on the meta device, with its parameters tied.
        family: with the parts of ``model``.

    Raises:
        UserError: targets that match nothing or no linear layer, a tied layer, or a folder that does not fit.
    """
    plan = adapter_plan(model, config, family)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for path in plan.saved:
        for parameter in model.get_submodule(path).parameters():
            parameter.requires_grad_(True)
    for path, rank in plan.ranks.items():
        attach(model.get_submodule(path), rank, plan.scaling(path), plan.dora, config.dropout)
    model.lora_plan = plan  # type: ignore[assignment]
    return plan


def plan_of(model: nn.Module) -> AdapterPlan | None:
    """The layers and scales of the adapters of ``model``; None for a model without."""
    found = model.__dict__.get("lora_plan")
    return found if isinstance(found, AdapterPlan) else None


def adapter_plan(model: PreTrainedModel, config: AdapterConfig, family: ModelFamily) -> AdapterPlan:
    """The layers of ``model`` that ``config`` gives adapters; the model is not changed.

    Raises:
        UserError: as for ``add_adapters``.
    """
    if config.plan is not None:
        _refuse_other_layers(model, config.plan)
        return config.plan
    if config.path is not None:
        return folder_plan(peft_folder(config.path, "model.adapter.path"), model, config)
    saved = _saved(model, config.modules_to_save or [])
    paths = _targets(model, config, family, saved)
    _refuse_tied(model, paths)
    ranks = {path: int(_by_pattern(config.rank_pattern, path, config.rank or RANK)) for path in paths}
    common = config.alpha if config.alpha is not None else 2.0 * (config.rank or RANK)
    alphas = {path: float(_by_pattern(config.alpha_pattern, path, common)) for path in paths}
    _refuse_unmatched(config, paths)
    return AdapterPlan(ranks, alphas, saved, bool(config.rslora), bool(config.dora))


def _refuse_other_layers(model: PreTrainedModel, plan: AdapterPlan) -> None:
    """Refuse the adapters of a checkpoint beside a model that lacks their layers."""
    modules = dict(model.named_modules())
    lost = [path for path in plan.ranks if path not in modules or not is_linear(modules[path])]
    lost += [path for path in plan.saved if path not in modules]
    if lost:
        why = f"lacks {len(lost)} layers of the adapters in the checkpoint, such as {lost[0]}"
        fix = "name the base beside which they were trained, or train new adapters (--fresh)"
        raise UserError(Problem("model.weights", why, fix))


def adapter_names(model: nn.Module) -> set[str]:
    """Names of the parameters that checkpoints of an adapter run hold: those of adapters and of ``modules_to_save``,
    also where ``model.frozen`` keeps them as they began."""
    plan = plan_of(model)
    whole = tuple(f"{path}." for path in plan.saved) if plan else ()
    named = model.named_parameters()
    return {name for name, one in named if one.requires_grad or is_part(name) or name.startswith(whole)}


@contextmanager
def adapters_off(modules: Iterable[nn.Module]) -> Iterator[None]:
    """The context in which models compute as their base does, without their adapters."""
    adapters = [found for module in modules for _, layer in adapted_layers(module) if (found := adapter_in(layer))]
    for adapter in adapters:
        adapter.off = True
    try:
        yield
    finally:
        for adapter in adapters:
            adapter.off = False


def has_adapters(model: nn.Module) -> bool:
    """Whether a model has adapters."""
    return any(is_part(name) for name, _ in model.named_parameters())


def _by_pattern(patterns: Mapping[str, float], path: str, usual: float) -> float:
    key = pattern_key(patterns, path)
    return usual if key is None else patterns[key]


def _ends_with(path: str, names: Iterable[str]) -> bool:
    return any(path == name or path.endswith(f".{name}") for name in names)


def _matches(path: str, name: str) -> bool:
    """Whether ``name`` is the last part of a layer's path, or a regular expression for the whole of it."""
    return _ends_with(path, [name]) or re.fullmatch(name, path) is not None


def _saved(model: nn.Module, names: list[str]) -> list[str]:
    """Paths of the modules whose weights are all trained."""
    found = []
    for name in names:
        paths = [path for path, module in model.named_modules() if _ends_with(path, [name]) and _holds(module)]
        if not paths:
            raise UserError(_no_such("model.adapter.modules_to_save", name, model))
        found += paths
    return list(dict.fromkeys(found))


def _holds(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _targets(model: PreTrainedModel, config: AdapterConfig, family: ModelFamily, saved: list[str]) -> list[str]:
    """Paths of the layers with an adapter, in the order of the model."""
    wanted = config.targets or ALL_LINEAR
    linear = [path for path, module in model.named_modules() if is_linear(module)]
    if wanted == ALL_LINEAR:
        found = [path for path in linear if not _left_out(path, model, family, saved)]
    elif isinstance(wanted, str):
        found = [path for path, _ in model.named_modules() if re.fullmatch(wanted, path)]
        if not found:
            raise UserError(_no_such("model.adapter.targets", wanted, model))
    else:
        for name in wanted:
            if not any(_ends_with(path, [name]) for path, _ in model.named_modules()):
                raise UserError(_no_such("model.adapter.targets", name, model))
        found = [path for path, _ in model.named_modules() if _ends_with(path, wanted)]
    for name in config.exclude:
        if not any(_matches(path, name) for path in found):
            fix = f"layers with an adapter end in {', '.join(_endings(found))}"
            raise UserError(Problem("model.adapter.exclude", "matches no layer with an adapter", fix, name))
    found = [path for path in found if not any(_matches(path, name) for name in config.exclude)]
    _refuse_kinds(model, found, saved, config)
    if not found:
        fix = f"its linear layers end in {', '.join(_endings(linear))}"
        raise UserError(Problem("model.adapter.targets", "leaves no layer with an adapter", fix, wanted))
    return found


def _left_out(path: str, model: PreTrainedModel, family: ModelFamily, saved: list[str]) -> bool:
    """Whether ``all-linear`` leaves a layer out: a head, one that no loss reaches, or one of ``modules_to_save``."""
    heads = [name for name, _ in heads_of(model, family)]
    prefix = model.base_model_prefix
    outside = bool(prefix) and hasattr(model, prefix) and not path.startswith(f"{prefix}.")
    unused = any(fnmatch.fnmatch(f"{path}.weight", pattern) for pattern in family.unused)
    return outside or unused or path in heads or _within(path, saved)


def _within(path: str, others: Iterable[str]) -> bool:
    return any(path == other or path.startswith(f"{other}.") for other in others)


def _refuse_kinds(model: nn.Module, paths: list[str], saved: list[str], config: AdapterConfig) -> None:
    for path in paths:
        module = model.get_submodule(path)
        if _within(path, saved):
            why = f"names {path}, which model.adapter.modules_to_save trains fully"
            raise UserError(Problem("model.adapter.targets", why, "name it in one of the two", config.targets))
        if not is_linear(module):
            why = f"names {path}, a {type(module).__name__}, but only linear layers can have adapters"
            fix = "name linear layers"
            if isinstance(module, nn.Embedding):
                fix = f"train it fully: model.adapter.modules_to_save=[{path.rpartition('.')[2]}]"
            raise UserError(Problem("model.adapter.targets", why, fix, config.targets))


def _refuse_tied(model: nn.Module, paths: list[str]) -> None:
    """Refuse adapters beside a weight that other modules use too, since merging would change those as well."""
    uses: dict[int, list[str]] = {}
    for path, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            uses.setdefault(id(parameter), []).append(path)
    for path in paths:
        others = [other for other in uses[id(model.get_submodule(path).get_parameter("weight"))] if other != path]
        if others:
            why = f"names {path}, whose weight is shared with {others[0]}: a merge would change both"
            fix = f"leave it out, or train it fully: model.adapter.modules_to_save=[{others[0].rpartition('.')[2]}]"
            raise UserError(Problem("model.adapter.targets", why, fix))


def _refuse_unmatched(config: AdapterConfig, paths: list[str]) -> None:
    for name, patterns in (("rank_pattern", config.rank_pattern), ("alpha_pattern", config.alpha_pattern)):
        for key in patterns:
            if not any(pattern_key([key], path) for path in paths):
                fix = f"layers with an adapter end in {', '.join(_endings(paths))}"
                raise UserError(Problem(f"model.adapter.{name}.{key}", "matches no layer with an adapter", fix))


def _no_such(key: str, name: str, model: nn.Module) -> Problem:
    kinds = is_linear if key.endswith("targets") else lambda module: is_linear(module) or type(module) is nn.Embedding
    there = _endings([path for path, module in model.named_modules() if kinds(module)])
    return Problem(key, "matches no layer of the model", f"its layers end in {', '.join(there)}", name)


def _endings(paths: Iterable[str]) -> Iterator[str]:
    """The last parts of paths, each once."""
    return iter(dict.fromkeys(path.rpartition(".")[2] for path in paths))
