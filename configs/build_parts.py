"""Build the parts of a recipe on small stand-ins, so that values that a constructor refuses are known before launch.

A signature shows the arguments of a part, but only its constructor can judge values. Callbacks, task and collator are
constructed and closed again. The user's own optimizer is built over two dummy parameters and makes two steps; then its
state must be one that a checkpoint can hold.
"""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from ..errors import Problem, UserError
from ..models.model_config import ModelConfig
from ..models.other_families import AUTO
from ..trainer.callbacks.callback import Callback
from ..trainer.component import Component, instantiate, locate
from ..trainer.component_errors import place_in
from ..trainer.data.data_config import DataConfig
from ..trainer.data.given import GIVEN
from ..trainer.optimizers import refuse_no_optimizer, unsaved_state, value_problems
from ..trainer.settings import TrainerConfig
from .validate import problem_of

OWN_OPTIMIZERS = "trireme.trainer.optimizers."
LIBRARIES = {"adamw_8bit": ("bitsandbytes", "'trireme-train[bnb]'"), "lion": ("lion_pytorch", "lion-pytorch")}
"""trireme's optimizers that need a library -> (module of the library, package to install)."""


def built(component: Component, path: str, **provided: Any) -> tuple[Any, list[Problem]]:
    """A part of a recipe, and the problems that keep it from being built; with problems the part is None."""
    try:
        return instantiate(component, **provided), []
    except UserError as error:
        return None, [each if isinstance(each, Problem) else Problem(path, each) for each in error.problems]
    except ValueError as error:
        arguments = {**component, **provided}
        return None, [problem_of(line, path, arguments) for line in str(error).splitlines() if line.strip()]
    except Exception as error:  # the user's own code may fail in any way
        why = f"{component['_target_']} cannot be built: {type(error).__name__}: {error}"
        return None, [Problem(path, why, "correct its code or arguments, or leave this part out")]


def build_callbacks(callbacks: dict[str, Component]) -> tuple[dict[str, Any], list[Problem]]:
    """Callbacks by name, already closed again, and the problems of callbacks that cannot be built."""
    found, problems = {}, []
    for name, component in callbacks.items():
        callback, refused = built(component, f"callbacks.{name}")
        problems += refused
        if callback is not None and not isinstance(callback, Callback):
            why = f"gives a {type(callback).__name__}, which is not a callback"
            fix = "derive it from trireme.trainer.callbacks.callback.Callback; docs/extending.md has an example"
            problems.append(Problem(f"callbacks.{name}._target_", why, fix, component["_target_"]))
        elif callback is not None:
            found[name] = callback
            with contextlib.suppress(Exception):  # the check is about building; a failing close shows in the run
                callback.close()
    return found, problems


def check_collator(
    component: Component, data: DataConfig, trainer: TrainerConfig, seed: int, config: Any = None
) -> list[Problem]:
    """Problems of building the recipe's collator. One that needs the tokenizer, or what else only the data tells, is
    built when the run starts.

    Args:
        config: fields of the model's configuration, for collators of trireme; None if they are not known.
    """
    from ..trainer.data.base_collator import is_ours  # imported here, since collators need torch
    from ..trainer.data.open_collator import taken

    known = {
        "block_size": data.block_size,
        "micro_batch_size": trainer.micro_batch_size,
        "pad_token_id": 0,
        "seed": seed,
    }
    target = locate(component["_target_"])
    if config is not None and is_ours(target):
        known["model"] = config
    wanted = taken(target, dict.fromkeys(GIVEN))
    if wanted.keys() - known.keys():
        return []
    return built(component, "collator", **taken(target, known))[1]


def check_values(component: Component) -> list[Problem]:
    """Problems of the values in an optimizer's arguments."""
    target: str = component["_target_"]
    arguments = {key: value for key, value in component.items() if key != "_target_"}
    if not target.startswith(OWN_OPTIMIZERS):
        return _try_optimizer(component)
    name = target.removeprefix(OWN_OPTIMIZERS)
    problems = [problem_of(line, "optimizer", arguments) for line in value_problems(arguments, name)]
    library, extra = LIBRARIES.get(name, ("", ""))
    if library and importlib.util.find_spec(library) is None:
        why = f"{name} needs {library}, which is not installed"
        problems.append(Problem("optimizer", why, f"pip install {extra}"))
    return problems


def _try_optimizer(component: Component) -> list[Problem]:
    """Build an optimizer and make two steps; a failure is attributed to the arguments that also fail alone, or to the
    optimizer if it fails with usual ones too."""
    name = component["_target_"]
    try:
        why = _attempt(component)
        if not why:
            return []
        usual = _attempt(_required(component))
        fails = isinstance(usual, _Fails)
        if fails or (usual and _required(component).keys() <= {"_target_", "lr"}):
            why = usual if fails else f"cannot be built: {usual}"
            return [Problem("optimizer._target_", why, _MEND[fails], name)]
        alone = [(key, _attempt(part)) for key, part in _one_by_one(component)]
    except UserError as error:
        return [each if isinstance(each, Problem) else Problem("optimizer", each) for each in error.problems]
    blamed = [
        Problem(f"optimizer.{key}", f"is refused by {name}: {why}", "", component[key]) for key, why in alone if why
    ]
    return blamed or [Problem("optimizer", f"{name} refuses these values together: {why}")]


class _Fails(str):
    """The reason why an optimizer's own code fails after it was built: its values may be sound."""


_MEND = {
    True: "correct it: step() is called without arguments, and state is kept by parameter; see docs/extending.md",
    False: "correct its constructor: it is called with parameter groups, then the arguments of the recipe",
}


def _attempt(arguments: Component) -> str:
    """Build an optimizer and make two steps; returns the reason if it fails, else an empty text."""
    import torch

    try:
        parameters = [torch.nn.Parameter(torch.ones(shape)) for shape in ((4, 4), (4,))]
        optimizer = instantiate(arguments, [{"params": [each]} for each in parameters])
    except UserError:
        raise
    except Exception as error:  # optimizers refuse values by ValueError, TypeError, assertions ...
        return _line(error)
    refuse_no_optimizer(optimizer, arguments["_target_"])
    try:
        for _ in range(2):  # some fill their state in the second one
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
    except Exception as error:
        if torch.cuda.is_available():  # the optimizer may only work on a GPU, and these parameters are on the CPU
            return ""
        return _Fails(f"fails in step(): {_line(error)}{place_in(type(optimizer), error)}")
    if why := unsaved_state(optimizer):
        return _Fails(why)
    finite = all(bool(each.isfinite().all()) for each in parameters)
    return "" if finite else "two steps give numbers that are not finite"


def _line(error: Exception) -> str:
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


def check_frozen(model: ModelConfig, task: Any) -> list[Problem]:
    """Problems of ``model.frozen``, ``model.adapter`` and ``model.quantization``, and of a model without a family file
    (its head, its BatchNorms): the model is built without memory. With weights the check of their tensors has already
    done this."""
    if not (model.frozen or model.adapter or model.qat or model.family == AUTO) or model.weights is not None:
        return []
    from ..models.build_model import build_on_meta
    from ..models.facts import Facts
    from ..models.heads import HEADS

    head = getattr(task, "head", None)
    if head not in HEADS:
        return []
    try:
        build_on_meta(model, head, Facts())
    except UserError as error:
        return [each if isinstance(each, Problem) else Problem("model.frozen", each) for each in error.problems]
    return []
