"""Try a recipe's parts before launch, to report invalid arguments early: construct callbacks, task and collator, test
the optimizer, and build the model without memory for its weights.

A signature shows which arguments a component takes, but only its constructor can judge their values. Callbacks, task
and collator are constructed, and callbacks closed again. Data loaders, sample orders and some collators need the open
data, so they cannot be constructed yet; components among their arguments are. The user's own optimizer makes some steps
on small tensors (``try_optimizer.py``). The model is built on the meta device, where it takes no memory.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable
from typing import Any

from ..errors import Problem, UserError
from ..models.model_config import ModelConfig
from ..models.other_families import AUTO
from ..trainer.callbacks.callback import Callback
from ..trainer.component import Component, NestedFailed, built_arguments, instantiate, locate
from ..trainer.data.constructor_values import GIVEN
from ..trainer.data.data_config import DataConfig
from ..trainer.optimizers import decay_groups, value_problems
from ..trainer.parameter_groups import GROUPS, OwnOptions, ParameterGroups, trained_shapes
from ..trainer.schedules import OWN, ScheduleConfig, build_schedule
from ..trainer.settings import TrainerConfig
from .try_optimizer import USUAL_GROUPS, Setting, try_optimizer
from .validate import problem_of

OWN_OPTIMIZERS = "trireme.trainer.optimizers."
LIBRARIES = {"adamw_8bit": ("bitsandbytes", "'trireme-train[bnb]'"), "lion": ("lion_pytorch", "lion-pytorch")}
"""trireme's optimizers that need a library -> (module of the library, package to install)."""


def built(component: Component, path: str, **provided: Any) -> tuple[Any, list[Problem]]:
    """Build a part of a recipe; returns it and the problems. With problems, the part is None."""
    return _tried(lambda: instantiate(component, **provided), component, path, provided)


def _tried(
    build: Callable[[], Any], component: Component, path: str, provided: dict[str, Any]
) -> tuple[Any, list[Problem]]:
    """The result of ``build`` for a component, and its problems. With problems, the result is None."""
    try:
        return build(), []
    except UserError as error:
        return None, [each if isinstance(each, Problem) else Problem(path, each) for each in error.problems]
    except NestedFailed as error:
        return None, [error.problem(path)]
    except ValueError as error:
        arguments = {**component, **provided}
        return None, [problem_of(line, path, arguments) for line in str(error).splitlines() if line.strip()]
    except (Exception, SystemExit) as error:  # the user's own code may fail in any way
        why = f"{component['_target_']} cannot be built: {type(error).__name__}: {error}"
        return None, [Problem(path, why, "correct its code or arguments, or leave this part out")]


def build_callbacks(callbacks: dict[str, Component]) -> tuple[dict[str, Any], list[Problem]]:
    """Build callbacks and close them again; returns them by name, and the problems of those that cannot be built."""
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


def other_problems(component: Component, path: str, refused: set[str]) -> list[Problem]:
    """Further problems of a component that has ``refused`` arguments: it is built without these arguments."""
    wrong = {field.removeprefix(f"{path}.").partition(".")[0] for field in refused if field.startswith(f"{path}.")}
    if path in refused or not wrong or wrong - component.keys() or "_target_" in wrong:
        return []
    left = {key: value for key, value in component.items() if key not in wrong}
    made, problems = built(left, path)
    if isinstance(made, Callback):
        with contextlib.suppress(Exception):
            made.close()
    return [problem for problem in problems if problem.field.removeprefix(f"{path}.").partition(".")[0] in left]


def check_collator(
    component: Component, data: DataConfig, trainer: TrainerConfig, seed: int, config: Any = None
) -> list[Problem]:
    """Problems of building the recipe's collator. A collator that needs the tokenizer, or other values that come from
    the data, is built when the run starts; here only the components among its arguments are built.

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
        return check_arguments(component, "collator")
    return built(component, "collator", **taken(target, known))[1]


def check_arguments(component: Component, path: str) -> list[Problem]:
    """Problems of the components among the arguments of a part that is built when the run starts."""
    return _tried(lambda: built_arguments(component), component, path, {})[1]


def check_later_parts(data: DataConfig | None, scheduler: ScheduleConfig | None) -> list[Problem]:
    """Problems of components in the arguments of parts that need the data or the length of the run: order, loader, own
    schedule."""
    parts: dict[str, Component | None] = {}
    if data is not None:
        parts |= {"data.order": data.order, "data.loader": data.loader}
    if scheduler is not None:
        parts[OWN] = scheduler.factor
    return [problem for path, part in parts.items() if part is not None for problem in check_arguments(part, path)]


def check_values(component: Component, setting: Setting | None = None) -> list[Problem]:
    """Problems of the values in an optimizer's arguments.

    Args:
        setting: the run's parameter groups and first learning rate; None takes the usual ones.
    """
    target: str = component["_target_"]
    arguments = {key: value for key, value in component.items() if key != "_target_"}
    if not target.startswith(OWN_OPTIMIZERS):
        return try_optimizer(component, setting or Setting())
    name = target.removeprefix(OWN_OPTIMIZERS)
    problems = [problem_of(line, "optimizer", arguments) for line in value_problems(arguments, name)]
    library, extra = LIBRARIES.get(name, ("", ""))
    if library and importlib.util.find_spec(library) is None:
        why = f"{name} needs {library}, which is not installed"
        problems.append(Problem("optimizer", why, f"pip install {extra}"))
    # Values of trireme's own are judged without torch; only options that a recipe gives to groups are tried.
    return problems or (try_optimizer(component, setting) if setting is not None and setting.asked else [])


def setting_of(
    optimizer: Component,
    model: ModelConfig | None,
    scheduler: ScheduleConfig | None,
    trainer: TrainerConfig | None,
    groups: ParameterGroups | None,
    blueprint: Any,
) -> tuple[Setting, list[Problem]]:
    """The setting in which a run uses its optimizer, and the problems of ``parameter_groups``.

    Args:
        model, scheduler, trainer: parts of the recipe, None if they have problems.
        blueprint: the model on the meta device, where it is known and has parameter groups.
    """
    first, options, origin = 1.0, list(USUAL_GROUPS), ""
    if scheduler is not None and trainer is not None and trainer.max_steps:
        with contextlib.suppress(UserError, ArithmeticError, ValueError):  # reported by the check of steps
            first = build_schedule(scheduler, trainer.max_steps)(0)
    lr = optimizer.get("lr")
    if model is not None and model.adapter is not None and model.adapter.lr_ratio != 1 and isinstance(lr, int | float):
        options, origin = [*options, {"lr": model.adapter.lr_ratio * lr}], "model.adapter.lr_ratio"
    if groups is None or blueprint is None:
        return Setting(options, origin=origin, first=first), []
    own, shapes = OwnOptions(groups, optimizer), trained_shapes(blueprint)
    if problems := own.problems(shapes):
        return Setting(options, origin=origin, first=first), problems
    named = ((name, one) for name, one in blueprint.named_parameters() if one.requires_grad)
    made = [{key: value for key, value in each.items() if key != "params"} for each in decay_groups(named, None, own)]
    further = [each for each in made if each not in options]
    asked = frozenset(own.named((name, one) for name, one in blueprint.named_parameters() if one.requires_grad))
    return Setting([*options, *further], asked, GROUPS if further else origin, first), []


def build_blueprint(model: ModelConfig, task: Any, groups: ParameterGroups | None = None) -> tuple[Any, list[Problem]]:
    """The model on the meta device, and the problems of parts that only a built model shows: ``model.frozen``,
    ``model.adapter``, ``model.quantization``, and, without a family file, head and BatchNorms.

    The model is None where it is not needed. If the recipe has weights, the check of their tensors has built the model
    already, so that only parameter groups need it here.
    """
    judged = model.frozen or model.adapter or model.qat or model.family == AUTO
    if groups is None and (not judged or model.weights is not None):
        return None, []
    from ..models.build_model import build_on_meta
    from ..models.facts import Facts
    from ..models.heads import HEADS

    head = getattr(task, "head", None)
    if head not in HEADS:
        return None, []
    try:
        return build_on_meta(model, head, Facts()), []
    except UserError as error:
        return None, [each if isinstance(each, Problem) else Problem("model.frozen", each) for each in error.problems]
