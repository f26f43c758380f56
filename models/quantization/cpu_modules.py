"""CPU offload of chosen modules of a quantised model: they stay in CPU memory and compute there; others use the GPU.

These modules are neither quantised nor trained (in transformers: ``llm_int8_enable_fp32_cpu_offload`` with a device
map). In the forward and in the backward pass, their inputs are copied to the CPU and their outputs back to the GPU. On
a machine without a GPU they are not quantised either.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import Problem, UserError

KEY, MARK = "model.quantization.on_cpu", "stays_on_cpu"
HOST = torch.device("cpu")


def mark_host_modules(model: nn.Module, patterns: list[str]) -> list[str]:
    """Mark the modules of ``model`` whose names match, and return their paths.

    Raises:
        UserError: a pattern matches no module, or one with a trained parameter.
    """
    paths = [path for path, _ in model.named_modules() if path]
    found: list[str] = []
    for pattern in patterns:
        own = [path for path in paths if _matches(path, pattern)]
        if not own:
            ends = ", ".join(dict.fromkeys(path.rpartition(".")[2] for path in paths if not path[-1].isdigit()))
            raise UserError(Problem(KEY, "matches no module", f"names end in {ends}", pattern))
        found += own
    for path in found:
        module = model.get_submodule(path)
        trained = next((name for name, one in module.named_parameters() if one.requires_grad), None)
        if trained is not None:
            why = f"names {path}, whose {trained} is trained, but only frozen modules can be computed on the CPU"
            fix = "leave its layers out of model.adapter (exclude, modules_to_save), or name another module"
            raise UserError(Problem(KEY, why, fix))
        module.__dict__[MARK] = True
    return found


def empty_on(model: nn.Module, device: torch.device) -> None:
    """Give the parameters and buffers of ``model`` memory on ``device``, those of marked modules on the CPU."""
    hosts = [path for path, module in model.named_modules() if module.__dict__.get(MARK)]
    if not hosts:
        model.to_empty(device=device)
        return
    for path, module in model.named_modules():
        module.to_empty(device=HOST if within(path, hosts) else device, recurse=False)
    for path in hosts if device.type not in ("cpu", "meta") else ():
        _compute_there(model.get_submodule(path))


def within(path: str, outer: list[str]) -> bool:
    """Whether a module is one of ``outer``, or lies in one."""
    return any(path == one or path.startswith(f"{one}.") for one in outer)


def moved(tree: Any, device: torch.device) -> Any:
    """A tree of tensors in tuples, lists and mappings, with its tensors on ``device``; differentiable."""
    if isinstance(tree, Tensor):
        return tree.to(device)
    if isinstance(tree, tuple | list):
        return type(tree)(moved(each, device) for each in tree)
    return {name: moved(each, device) for name, each in tree.items()} if isinstance(tree, Mapping) else tree


def device_of(tree: Any) -> torch.device | None:
    """Device of the first tensor in a tree."""
    if isinstance(tree, Tensor):
        return tree.device
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, tuple | list) else ()
    return next((found for part in parts if (found := device_of(part)) is not None), None)


def _compute_there(module: nn.Module) -> None:
    came_from: list[torch.device] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        came_from.append(device_of((args, kwargs)) or HOST)
        return moved(args, HOST), moved(kwargs, HOST)

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return moved(output, came_from.pop())

    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave)


def _matches(path: str, pattern: str) -> bool:
    return path == pattern or path.endswith(f".{pattern}") or fnmatch.fnmatch(path, pattern)
