"""Build the parts of a recipe on small stand-ins, so that what a constructor refuses is known before launch.

Signatures say which arguments there are; only the part itself knows which values it takes. Callbacks, task and collator
are constructed and closed again; an optimizer of one's own is built over two dummy parameters and makes one step.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import Problem, UserError
from ..models.model_config import ModelConfig
from ..trainer.component import Component, instantiate, locate
from ..trainer.optimizers import optimizer_factory, value_problems
from .validate import problem_of

OWN_OPTIMIZERS = "trireme.trainer.optimizers."
LIBRARIES = {"adamw_8bit": ("bitsandbytes", "'trireme-train[bnb]'"), "lion": ("lion_pytorch", "lion-pytorch")}
"""Optimizer of ours -> the library that it needs, and what to install."""


def built(component: Component, path: str, **provided: Any) -> tuple[Any, list[Problem]]:
    """A part of a recipe, or None and why it cannot be built."""
    try:
        return instantiate(component, **provided), []
    except UserError as error:
        return None, [each if isinstance(each, Problem) else Problem(path, each) for each in error.problems]
    except ValueError as error:
        arguments = {**component, **provided}
        return None, [problem_of(line, path, arguments) for line in str(error).splitlines() if line.strip()]
    except Exception as error:  # a part of the user's own may fail in any way
        why = f"{component['_target_']} cannot be built: {type(error).__name__}: {error}"
        return None, [Problem(path, why, "mend it, or leave this part out")]


def build_callbacks(callbacks: dict[str, Component]) -> tuple[dict[str, Any], list[Problem]]:
    """Callbacks by name, closed already, and the problems of those that cannot be built."""
    found, problems = {}, []
    for name, component in callbacks.items():
        callback, refused = built(component, f"callbacks.{name}")
        problems += refused
        if callback is not None:
            found[name] = callback
            with contextlib.suppress(Exception):  # a part that cannot be closed shows when it is used
                callback.close()
    return found, problems


def check_values(component: Component) -> list[Problem]:
    """Problems of the values that an optimizer is given."""
    target: str = component["_target_"]
    arguments = {key: value for key, value in component.items() if key != "_target_"}
    if not target.startswith(OWN_OPTIMIZERS):
        return _try_optimizer(component)
    problems = [problem_of(line, "optimizer", arguments) for line in value_problems(arguments)]
    library, extra = LIBRARIES.get(target.removeprefix(OWN_OPTIMIZERS), ("", ""))
    if library and importlib.util.find_spec(library) is None:
        why = f"{target.removeprefix(OWN_OPTIMIZERS)} needs {library}, which is not installed"
        problems.append(Problem("optimizer", why, f"pip install {extra}"))
    return problems


def _try_optimizer(component: Component) -> list[Problem]:
    """Build it and make one step; what fails is put down to the arguments that fail alone."""
    import torch

    def attempt(arguments: Component) -> str:
        try:
            parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 4), (4,))]
            optimizer = instantiate(arguments, [{"params": [each]} for each in parameters])
        except UserError:
            raise
        except Exception as error:  # optimizers refuse values by ValueError, TypeError, assertions ...
            return " ".join(f"{type(error).__name__}: {error}".split())
        return _step(optimizer, parameters)

    try:
        why = attempt(component)
        if not why:  # what a run asks of it beside
            optimizer_factory(component)([("matrix", torch.nn.Parameter(torch.ones(4, 4)))])
            return []
        name = component["_target_"]
        alone = [(key, attempt(part)) for key, part in _one_by_one(component)]
    except UserError as error:
        return [each if isinstance(each, Problem) else Problem("optimizer", each) for each in error.problems]
    blamed = [
        Problem(f"optimizer.{key}", f"is refused by {name}: {why}", "", component[key]) for key, why in alone if why
    ]
    return blamed or [Problem("optimizer", f"{name} refuses these values together: {why}")]


def _step(optimizer: Any, parameters: list[Any]) -> str:
    """Why one step is of no use; empty if it is."""
    import torch

    if not isinstance(optimizer, torch.optim.Optimizer):
        return f"a {type(optimizer).__name__} is not a torch.optim.Optimizer"
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    try:
        optimizer.step()
    except Exception as error:
        if torch.cuda.is_available():  # it may be made for parameters on a GPU
            return ""
        return " ".join(f"{type(error).__name__}: {error}".split())
    return (
        "" if all(bool(each.isfinite().all()) for each in parameters) else "one step gives numbers that are not finite"
    )


def _one_by_one(component: Component) -> Iterable[tuple[str, Component]]:
    """Every argument of the recipe with nothing but what is required beside it."""
    target: Callable[..., Any] = locate(component["_target_"])
    required = {"_target_": component["_target_"]}
    with contextlib.suppress(TypeError, ValueError):
        for name, parameter in list(inspect.signature(target).parameters.items())[1:]:
            if parameter.default is parameter.empty and name in component:
                required[name] = 1e-3 if name == "lr" else component[name]
    for key, value in component.items():
        if key != "_target_":
            yield key, {**required, key: value}


def check_frozen(model: ModelConfig, task: Any) -> list[Problem]:
    """Problems of ``model.frozen``: what its patterns match is asked of the model itself, built without memory. With
    local weights that has been done already, when their tensors were looked at."""
    if not model.frozen or model.weights is not None:
        return []
    from ..models.build_model import HEADS, Vocabulary, build_on_meta

    head = getattr(task, "head", None)
    if head not in HEADS:
        return []
    try:
        build_on_meta(model, head, Vocabulary(1))
    except UserError as error:
        return [each if isinstance(each, Problem) else Problem("model.frozen", each) for each in error.problems]
    return []
