"""Test an optimizer on small tensors before a run: build it, take two steps, and check that its state can be saved.

As in the run, the optimizer has several parameter groups with their own learning rates and weight decays. It takes one
step at the schedule's first learning rate, and one at the full rate. If it fails, each argument is tried alone. An
argument that also fails alone is reported; if the optimizer fails with usual arguments too, the optimizer itself is
reported.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import Problem, UserError
from ..trainer.component import Component, NestedFailed, instantiate, locate
from ..trainer.component_errors import place_in
from ..trainer.optimizers import refuse_no_optimizer, unsaved_state

USUAL_GROUPS: tuple[dict[str, Any], ...] = ({}, {"weight_decay": 0.0})
"""Options of the two groups that every run makes: matrices, and vectors without decay."""


@dataclass(frozen=True)
class Setting:
    """The parameter groups and first learning rate with which a run uses its optimizer."""

    groups: Sequence[dict[str, Any]] = USUAL_GROUPS
    """Options of each parameter group."""
    asked: frozenset[str] = frozenset()
    """Names of options that the recipe gives in ``parameter_groups``."""
    origin: str = ""
    """Key of the recipe that makes more groups than the usual two."""
    first: float = 1.0
    """Factor of the learning rate at the first step, 0 if it warms up."""


def try_optimizer(component: Component, setting: Setting) -> list[Problem]:
    """Problems of an optimizer that cannot be built, cannot step, or cannot be saved."""
    name = component["_target_"]
    try:
        why = _attempt(component, setting)
        if not why:
            return []
        plain = Setting(first=setting.first)
        if setting.origin and not _attempt(component, plain):
            fix = "leave these groups out, or choose another optimizer, such as optimizer=adamw"
            return [Problem(setting.origin, f"makes parameter groups that {name} refuses: {why}", fix)]
        if setting.first != 1 and not _attempt(component, Setting()):
            fix = "use scheduler=constant, or another optimizer"
            why = f"begins at {setting.first:g} times the learning rate, which {name} refuses: {why}"
            return [Problem("scheduler", why, fix)]
        return _blamed(component, plain, why)
    except UserError as error:
        return [each if isinstance(each, Problem) else Problem("optimizer", each) for each in error.problems]


def _blamed(component: Component, setting: Setting, why: str) -> list[Problem]:
    """Problems of the optimizer's own code, or of its arguments one by one."""
    name, required = component["_target_"], _required(component)
    usual = _attempt(required, setting)
    fails = isinstance(usual, _Fails)
    if fails or (usual and required.keys() <= {"_target_", "lr"}):
        why = usual if fails else f"cannot be built: {usual}"
        return [Problem("optimizer._target_", why, _MEND[fails], name)]
    alone = [(key, _attempt(part, setting)) for key, part in _one_by_one(component)]
    blamed = [
        Problem(f"optimizer.{key}", f"is refused by {name}: {why}", _ANOTHER, component[key])
        for key, why in alone
        if why
    ]
    together = f"{name} refuses these values together: {why}"
    return blamed or [Problem("optimizer", together, "change or leave out one of them")]


class _Fails(str):
    """A reason that lies in the optimizer's code (its steps or its state), not in the values of its arguments."""


_ANOTHER = "write another value, or leave it out"
_MEND = {
    True: "correct it: step() is called without arguments, and state is kept by parameter; see docs/extending.md",
    False: "correct its constructor: it is called with parameter groups, then the arguments of the recipe",
}


def _attempt(arguments: Component, setting: Setting) -> str:
    """Build an optimizer and make two steps; returns the reason if it fails, else an empty text."""
    import torch

    from ..parallel.group_values import GroupValues

    parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 4), (4,))]
    parameters += [torch.nn.Parameter(torch.ones(4, 4)) for _ in setting.groups[2:]]
    groups = [{"params": [each], **options} for each, options in zip(parameters, setting.groups, strict=False)]
    try:
        optimizer = instantiate(arguments, groups)
    except UserError:
        raise
    except NestedFailed as error:
        raise UserError(error.problem("optimizer")) from error
    except (Exception, SystemExit) as error:  # optimizers refuse values by ValueError, TypeError, assertions ...
        return _line(error)
    refuse_no_optimizer(optimizer, arguments["_target_"], parameters)
    if unknown := sorted(setting.asked - optimizer.defaults.keys()):
        return f"it has no option {', '.join(unknown)}, but {', '.join(sorted(optimizer.defaults))}"
    kept, rates = GroupValues(optimizer), [group["lr"] for group in optimizer.param_groups]
    try:
        for factor in (setting.first, 1.0):  # some fill their state in the second one
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    except Exception as error:
        if torch.cuda.is_available():  # the optimizer may only work on a GPU, and these parameters are on the CPU
            return ""
        return _Fails(f"fails in step(): {_line(error)}{place_in(type(optimizer), error)}")
    if why := unsaved_state(optimizer, kept.changed()):
        return _Fails(why)
    finite = all(bool(each.isfinite().all()) for each in parameters)
    return "" if finite else "two steps give numbers that are not finite"


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _required(component: Component) -> Component:
    """The optimizer with its required arguments only, and a usual learning rate."""
    target: Callable[..., Any] = locate(component["_target_"])
    required = {"_target_": component["_target_"]}
    with contextlib.suppress(TypeError, ValueError):
        for name, parameter in list(inspect.signature(target).parameters.items())[1:]:
            if parameter.default is parameter.empty and name in component:
                required[name] = 1e-3 if name == "lr" else component[name]
    return required


def _one_by_one(component: Component) -> Iterable[tuple[str, Component]]:
    """For every argument of the recipe, a component with this argument and the required ones only."""
    required = _required(component)
    for key, value in component.items():
        if key != "_target_":
            yield key, {**required, key: value}
