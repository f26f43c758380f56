"""Define the optimizers that recipes choose by name, divide parameters into groups with and without weight decay, and
check an optimizer's arguments and its saved states.

Every optimizer here is the target of a file in ``configs/optimizer/``. Any other optimizer can be named by its
``_target_`` (``torch.optim.RAdam``); it is called with parameter groups and its recipe arguments.

torch is imported inside the functions that need it: ``trireme check`` only reads signatures and values here, and an
import of torch would take half of its time.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from ..errors import Problem, UserError
from .component import Component, instantiate, locate
from .component_errors import CONSTRUCTOR, component_errors

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .parameter_groups import OwnOptions

Groups = list[dict[str, Any]]
Options = Callable[[str, Sequence[int]], dict[str, Any]]
"""(name, shape of the whole parameter) -> options of its group."""
SECOND = "lora_B"
"""Name of the second matrix of an adapter."""
Implementation = Literal["auto", "fused", "foreach", "for_loop"]
"""torch's implementation of a step: one kernel for all parameters (fused), batched operations (foreach), or a loop over
parameters (for_loop)."""


def decay_groups(
    parameters: Iterable[tuple[str, nn.Parameter]], second_lr: float | None = None, own: Options | None = None
) -> Groups:
    """Two groups: matrices and embeddings decay; norms, biases and other vectors do not (weight decay 0).

    Args:
        second_lr: learning rate of a third group, the second matrices of adapters (LoRA+,
            https://arxiv.org/abs/2402.12354); None leaves them in the first.
        own: options of the recipe for each parameter, which win; each set of options makes a further group.
    """
    groups: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for options in ({}, {"weight_decay": 0.0}):  # these come first: the first group's rate is the one that is logged
        groups[_key(options)] = {"params": [], **options}
    for name, parameter in parameters:
        options = {} if parameter.ndim >= 2 else {"weight_decay": 0.0}
        if second_lr is not None and name.endswith(f".{SECOND}"):
            options["lr"] = second_lr
        options |= own(name, parameter.shape) if own is not None else {}
        groups.setdefault(_key(options), {"params": [], **options})["params"].append(parameter)
    return [group for group in groups.values() if group["params"]]


def _key(options: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Options as a key of a dict: parameters with equal options share a group."""
    return tuple((name, repr(value)) for name, value in sorted(options.items()))


def optimizer_factory(
    component: Component, lr_ratio: float = 1.0, own: OwnOptions | None = None
) -> Callable[[list[tuple[str, nn.Parameter]]], torch.optim.Optimizer]:
    """A function that builds the recipe's optimizer over named parameters, with an ``initial_lr`` for schedules.

    Args:
        lr_ratio: learning rate of the second matrices of adapters, as a multiple of the others'.
        own: options of the recipe's parameter groups.
    """

    def build(parameters: list[tuple[str, nn.Parameter]]) -> torch.optim.Optimizer:
        second_lr = None if lr_ratio == 1 else lr_ratio * component["lr"]
        groups = decay_groups(parameters, second_lr, own)
        with component_errors("optimizer", locate(component["_target_"]), CONSTRUCTOR):
            optimizer = instantiate(component, groups)
        refuse_no_optimizer(optimizer, component["_target_"], [one for _, one in parameters])
        if own is not None:
            own.refuse_unknown(own.named(parameters), optimizer.defaults)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    return build


def refuse_no_optimizer(optimizer: Any, target: str, parameters: Sequence[nn.Parameter]) -> None:
    """Check that the object made by ``target`` is an optimizer that trains all ``parameters``.

    Raises:
        UserError: it is none, has no learning rate, or leaves out a parameter, which would then not be trained.
    """
    import torch

    if not isinstance(optimizer, torch.optim.Optimizer):
        why = f"gives a {type(optimizer).__name__}, not a torch.optim.Optimizer"
        fix = "derive it from torch.optim.Optimizer; docs/extending.md has an example"
        raise UserError(Problem("optimizer._target_", why, fix, target))
    if any("lr" not in group for group in optimizer.param_groups):
        why = "has no learning rate, which schedules scale"
        fix = 'give its groups an "lr": super().__init__(params, {"lr": lr, ...})'
        raise UserError(Problem("optimizer._target_", why, fix, target))
    held = {id(one) for group in optimizer.param_groups for one in group["params"]}
    left = sum(id(one) not in held for one in parameters)
    if left:
        why = f"leaves out {left} of the {len(parameters)} parameters that it was called with"
        fix = "hand all groups on: super().__init__(params, ...); freeze what is not to be trained: model.frozen"
        raise UserError(Problem("optimizer._target_", why, fix, target))


def unsaved_state(optimizer: torch.optim.Optimizer, changed: Sequence[Mapping[str, Any]] = ()) -> str:
    """The parts of an optimizer's state that no checkpoint can hold; empty if all of it is restored as it was.

    Args:
        changed: values that its steps have changed in its parameter groups (``GroupValues.changed``).
    """
    import torch

    for name, value in ((name, value) for values in changed for name, value in values.items()):
        if isinstance(value, torch.Tensor) or not _is_json(list(value) if isinstance(value, tuple) else value):
            kind = type(value).__name__
            return f"keeps a {kind} as {name!r} in its parameter groups: checkpoints hold numbers of groups"

    for owner, states in optimizer.state.items():
        if not isinstance(owner, torch.Tensor):
            return f"keeps state under {owner!r}, which belongs to no parameter and is not saved"
        for name, value in states.items():
            if not isinstance(value, torch.Tensor) and not _is_json(value):
                return f"keeps a {type(value).__name__} as state {name!r}: checkpoints hold tensors and numbers"
    return ""


def _is_json(value: Any) -> bool:
    try:
        return isinstance(value, float) or json.loads(json.dumps(value)) == value  # NaN differs from itself
    except (TypeError, ValueError):
        return False


def check_state(component: Component, saved: dict[str, dict[str, Any]]) -> None:
    """Check that the optimizer states in a checkpoint are those of the recipe's optimizer; no states at all are fine.

    Args:
        saved: parameter name -> state name -> any value.

    Raises:
        ValueError: another kind of optimizer has written the checkpoint, with states of another meaning.
    """
    held = {frozenset(states) - {"step"} for states in saved.values()}
    kinds = _kinds_of_state(component)
    if not held <= kinds:
        there, here = ({"/".join(sorted(keys)) or "nothing" for keys in sets} for sets in (held - kinds, kinds))
        raise ValueError(
            f"the checkpoint's optimizer kept {' and '.join(sorted(there))}, that of the recipe "
            f"({component['_target_']}) keeps {' or '.join(sorted(here))}"
        )


def _kinds_of_state(component: Component) -> set[frozenset[str]]:
    """Names of the states of a vector, a small and a large matrix, which 8-bit optimizers treat differently."""
    import torch
    from torch import nn

    parameters = [nn.Parameter(torch.zeros(shape)) for shape in ((2,), (2, 2), (128, 128))]
    optimizer = optimizer_factory(component)([(str(number), p) for number, p in enumerate(parameters)])
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return {frozenset(optimizer.state[parameter]) - {"step"} for parameter in parameters}


def adamw(
    params: Groups,
    lr: float,
    betas: list[float] | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
    implementation: Implementation = "auto",
) -> torch.optim.Optimizer:
    """AdamW (https://arxiv.org/abs/1711.05101).

    Args:
        lr: base learning rate; the schedule scales it.
        betas: decay rates of the two moments; null takes [0.9, 0.95].
        eps: added to the root of the second moment.
        weight_decay: decay of matrices and embeddings towards zero, scaled by the learning rate.
        implementation: torch's implementation of a step: one kernel for all parameters (fused), batched operations
            (foreach), or a loop over parameters (for_loop); auto takes fused.
    """
    import torch

    first, second = (0.9, 0.95) if betas is None else betas
    return torch.optim.AdamW(
        params, lr=lr, betas=(first, second), eps=eps, weight_decay=weight_decay, **_switches(implementation)
    )


def sgd(
    params: Groups,
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    implementation: Implementation = "auto",
) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum.

    Args:
        lr: base learning rate; the schedule scales it.
        momentum: momentum factor: share of the last update that is kept.
        nesterov: use Nesterov momentum.
        weight_decay: decay of matrices and embeddings towards zero, scaled by the learning rate.
        implementation: torch's implementation of a step: one kernel for all parameters (fused), batched operations
            (foreach), or a loop over parameters (for_loop); auto takes fused, or foreach for tensors that are split
            over ranks, for which torch has no fused SGD.
    """
    import torch
    from torch.distributed.tensor import DTensor

    if implementation == "auto" and any(isinstance(each, DTensor) for group in params for each in group["params"]):
        implementation = "foreach"
    return torch.optim.SGD(
        params, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, **_switches(implementation)
    )


def adafactor(
    params: Groups,
    lr: float,
    beta2_decay: float = -0.8,
    clip_threshold: float = 1.0,
    weight_decay: float = 0.0,
) -> torch.optim.Optimizer:
    """Adafactor: second moments as row and column sums (https://arxiv.org/abs/1804.04235).

    Args:
        lr: base learning rate; the schedule scales it.
        beta2_decay: exponent of the decay rate of second moments, which is 1 - step ** beta2_decay.
        clip_threshold: largest root mean square of an update.
        weight_decay: decay of matrices and embeddings towards zero, scaled by the learning rate.
    """
    import torch

    return torch.optim.Adafactor(params, lr=lr, beta2_decay=beta2_decay, d=clip_threshold, weight_decay=weight_decay)


def lion(
    params: Groups, lr: float, betas: list[float] | None = None, weight_decay: float = 0.1
) -> torch.optim.Optimizer:
    """Lion: the sign of a momentum (https://arxiv.org/abs/2302.06675).

    Args:
        lr: base learning rate; the schedule scales it.
        betas: decay rates of the update and of the momentum; null takes [0.9, 0.99].
        weight_decay: decay of matrices and embeddings towards zero, scaled by the learning rate.
    """
    from lion_pytorch import Lion

    first, second = (0.9, 0.99) if betas is None else betas
    return Lion(params, lr=lr, betas=(first, second), weight_decay=weight_decay)


def adamw_8bit(
    params: Groups,
    lr: float,
    betas: list[float] | None = None,
    eps: float = 1e-8,
    weight_decay: float = 0.1,
) -> torch.optim.Optimizer:
    """AdamW with 8-bit moments (https://arxiv.org/abs/2110.02861); needs bitsandbytes.

    Args:
        lr: base learning rate; the schedule scales it.
        betas: decay rates of the two moments; null takes [0.9, 0.95].
        eps: added to the root of the second moment.
        weight_decay: decay of matrices and embeddings towards zero, scaled by the learning rate.
    """
    try:
        with _quiet("bitsandbytes"):  # without a GPU it tells of kernels for inference that it does not find
            from bitsandbytes.optim import AdamW8bit
    except ImportError:
        raise UserError(
            Problem(
                "optimizer", "adamw_8bit needs bitsandbytes, which is not installed", "pip install 'trireme-train[bnb]'"
            )
        ) from None
    first, second = (0.9, 0.95) if betas is None else betas
    return AdamW8bit(params, lr=lr, betas=(first, second), eps=eps, weight_decay=weight_decay)


@contextmanager
def _quiet(library: str) -> Iterator[None]:
    """Context in which the warnings of a library's loggers are not shown; its errors are."""
    logger = logging.getLogger(library)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _switches(implementation: Implementation) -> dict[str, bool]:
    if implementation == "auto":
        return {"fused": True}  # measured faster than foreach on both CPU and CUDA
    return {"fused": implementation == "fused", "foreach": implementation == "foreach"}


def value_problems(arguments: dict[str, Any], optimizer: str = "") -> list[str]:
    """Problems of argument values for the optimizers here, as lines ``field=value why; fix``.

    Valid ranges are declared instead of building an optimizer, since building one makes torch import its compiler.
    """
    problems = []
    for name, value in arguments.items():
        if name == "betas" and value is not None:
            if len(value) != 2 or not all(0 <= beta < 1 for beta in value):
                problems.append(f"betas={value} must be two numbers of at least 0 and below 1; use [0.9, 0.95]")
        elif name in _RANGES and value is not None:
            fits, words = _RANGES[name]
            if not (math.isfinite(value) and fits(value)):
                problems.append(f"{name}={value} must be {words}")
    if optimizer == "lion" and arguments.get("lr") == 0:
        problems.append("lr=0 must be positive, since Lion is not made with 0; use 1e-4 or so")
    if arguments.get("nesterov") and arguments.get("momentum") == 0:
        problems.append("nesterov=true needs momentum; set momentum=0.9, or nesterov=false")
    return problems


_RANGES: dict[str, tuple[Callable[[float], bool], str]] = {
    "lr": (lambda value: value >= 0, "finite and not negative; use 3e-4 or so"),
    "eps": (lambda value: value >= 0, "finite and not negative; use 1e-8"),
    "weight_decay": (lambda value: value >= 0, "finite and not negative; use 0 for none"),
    "momentum": (lambda value: 0 <= value < 1, "at least 0 and below 1; use 0.9 or so"),
    "beta2_decay": (lambda value: value <= 0, "finite and not positive; use -0.8"),
    "clip_threshold": (lambda value: value >= 1, "finite and at least 1; use 1.0"),
}
"""Argument -> (test of a value, valid values in words)."""
