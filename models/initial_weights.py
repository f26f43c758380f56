"""Random initial weights of a model, computed one module at a time. The values of a module depend on the seed and on
its name, not on the modules before it.

transformers draws the weights of all modules from one generator, in order. Its values therefore depend on every module
before, and the whole model must be in memory. Here every module has its own generator, seeded by its name. So any rank
can compute any parameter under any parallelism plan, with only one module in memory.
"""

from __future__ import annotations

import copy
import fnmatch
import hashlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel


def initial_weights(
    model: PreTrainedModel,
    seed: int,
    names: Collection[str] | None = None,
    given: Mapping[str, float] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Names and full CPU tensors of ``model``, which is on the meta device; a tied parameter comes once.

    Args:
        names: the tensors to compute; modules that hold none of them are skipped.
        given: pattern of names -> value of tensors that transformers leaves without one.

    Raises:
        RuntimeError: a tensor is left without values, which would else be a silent NaN or zero.
    """
    wanted = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    wanted &= wanted if names is None else set(names)
    owners = {name: module for name, module in model.named_modules() if isinstance(module, PreTrainedModel)}
    for prefix, module in model.named_modules():
        own = [name for name in _own_names(module) if _join(prefix, name) in wanted]
        if own:
            owner = owners[max((name for name in owners if _inside(prefix, name)), key=len)]
            if isinstance(module, parametrize.ParametrizationList):
                yield from _parametrised(model, owner, prefix, own, seed)
                continue
            parent = model.get_submodule(prefix.rpartition(".")[0]) if prefix else None
            filled = _initialise(module, owner, seed_of(seed, prefix), parent, prefix.rpartition(".")[2])
            for name in own:
                tensor = getattr(filled, name).detach()
                if tensor.is_floating_point() and tensor.isnan().any():
                    tensor = _remaining(_join(prefix, name), module, name, given or {}, seed_of(seed, prefix))
                    tensor = _as_constructed(module, name, owner, seed_of(seed, prefix)) if tensor is None else tensor
                if tensor is None:
                    raise RuntimeError(f"{type(owner).__name__} does not initialise {_join(prefix, name)}")
                yield _join(prefix, name), tensor


def _parametrised(
    model: PreTrainedModel, owner: PreTrainedModel, prefix: str, own: list[str], seed: int
) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a parametrised weight is computed from, such as norm and direction under weight norm.

    The rules of a model know the weight, so the weight is initialised first, and what it is made of follows from it.

    Args:
        prefix: path of the list of parametrisations, ``conv.parametrizations.weight``.
    """
    path, _, weight = prefix.partition(".parametrizations.")
    module = model.get_submodule(path)
    parametrisation: Any = module.parametrizations[weight][0]  # type: ignore[index]
    # remove_parametrizations would change the class, which copies of the module share with it.
    plain = object.__new__(type(module).__bases__[0])
    plain.__dict__ = dict(vars(module))
    plain._modules = {name: child for name, child in module._modules.items() if name != "parametrizations"}
    plain._parameters = {weight: nn.Parameter(getattr(module, weight).detach()), **module._parameters}
    parent, name = model.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2]
    filled = getattr(_initialise(plain, owner, seed_of(seed, prefix), parent, name), weight).detach()
    if filled.isnan().any():
        filled = _remaining(prefix, plain, weight, {}, seed_of(seed, prefix))
    with torch.no_grad():
        parts = parametrisation.right_inverse(filled)
    parts = (parts,) if isinstance(parts, Tensor) else parts
    names = ("original",) if len(parts) == 1 else [f"original{number}" for number in range(len(parts))]
    yield from ((_join(prefix, name), part) for name, part in zip(names, parts, strict=True) if name in own)


def _initialise(
    module: nn.Module, owner: PreTrainedModel, seed: int, parent: nn.Module | None, name_in_parent: str
) -> nn.Module:
    """A CPU copy of one module (its children stay on meta), filled by the ``_init_weights`` of its model."""
    filled = copy.deepcopy(module).to_empty(device="cpu", recurse=False)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for name in _own_names(filled):
            tensor = getattr(filled, name)
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
        owner._init_weights(filled)
        if parent is not None and not isinstance(parent, nn.ModuleList):
            # Some rules act on the parent: GPT-2 scales its output projections by depth, and T5 draws its embeddings in
            # the rule of the whole model. They get a copy of the parent that holds the filled module; its other
            # children stay on meta.
            around = copy.copy(parent)
            around._modules = {**parent._modules, name_in_parent: filled}
            owner._init_weights(around)
    return filled


def _remaining(name: str, module: nn.Module, own: str, given: Mapping[str, float], seed: int) -> Tensor | None:
    """Values for a tensor that the model's own rules leave without any: the family's value, those by torch's rule for
    this kind of module, or zero for a bias; None if there is no rule."""
    shape = getattr(module, own).shape
    for pattern, value in given.items():
        if fnmatch.fnmatch(name, pattern):
            return torch.full(shape, value)
    if hasattr(module, "reset_parameters"):
        fresh = copy.deepcopy(module).to_empty(device="cpu", recurse=False)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh.reset_parameters()  # type: ignore[operator]
        return getattr(fresh, own).detach()
    return torch.zeros(shape) if own == "bias" else None


def _as_constructed(module: nn.Module, own: str, owner: PreTrainedModel, seed: int) -> Tensor | None:
    """A tensor as the constructor of its module makes it, such as ``nn.Parameter(torch.zeros(...))``, which a model on
    the meta device does not tell; None for a whole model, and for a module that takes more than a configuration."""
    if isinstance(module, PreTrainedModel):
        return None
    for arguments in ((owner.config,), ()):
        try:
            with torch.random.fork_rng(devices=[]), torch.device("cpu"):
                torch.default_generator.manual_seed(seed)
                made = getattr(type(module)(*arguments), own)
        except (AttributeError, TypeError, ValueError):
            continue
        if made.shape == getattr(module, own).shape:
            return made.detach().float()
    return None


def _own_names(module: nn.Module) -> list[str]:
    tensors = {**module._parameters, **module._buffers}
    return [name for name, tensor in tensors.items() if tensor is not None]


def seed_of(seed: int, name: str) -> int:
    """The seed of the generator of one module or tensor."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little") >> 1


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _inside(path: str, ancestor: str) -> bool:
    return not ancestor or path == ancestor or path.startswith(ancestor + ".")
