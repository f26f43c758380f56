"""Check the components (``_target_`` nodes) of a recipe before a run starts: targets must exist, arguments must fit.

Without this check, a mistyped argument of a callback or data source would show as a ``TypeError`` on every rank, after
the model was built.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Problem
from ..trainer.component import locate
from .values import beyond, check_value, did_you_mean

OF_EXTRAS = ("optuna", "ray")
"""Packages with classes that recipes may name; an extra of the same name installs each of them."""
MISSING = "???"
"""Value in YAML of a key that the user must set."""


@dataclass(frozen=True)
class Provided:
    """Arguments that the engine itself passes to a component, in addition to those of the recipe."""

    positional: int = 0
    """Number of arguments passed by position."""
    names: frozenset[str] = frozenset()
    """Names of arguments passed by keyword."""


def check_component(node: Any, path: str, provided: Provided = Provided(), fix: str = "") -> list[Problem]:
    """Problems of one component and of all components inside its arguments.

    Args:
        node: value of the recipe at ``path``.
        provided: arguments that the engine itself passes.
        fix: what to do if the target is missing.
    """
    if not isinstance(node, dict):
        fix = f"to leave it out write ~{path}" if node is None else "write _target_: package.module.Name"
        return [Problem(path, "expected a component, a mapping with a _target_", fix, node)]
    name = node.get("_target_", MISSING)
    if not isinstance(name, str) or name == MISSING:
        return [
            Problem(
                f"{path}._target_",
                "is required: the dotted path of the class or function to call",
                fix or "write _target_: package.module.Name",
            )
        ]
    target, problems = _import(name, f"{path}._target_")
    arguments = {key: value for key, value in node.items() if key != "_target_"}
    if target is not None:
        problems += _check_arguments(target, name, arguments, path, provided)
        node.update(arguments)  # the check turns a single value into a list where a list is expected
    return problems + nested_components(arguments, path)


def target_fix(path: str, raw: Any) -> str:
    """The fix for a component without ``_target_``: choose the file of its name, or take the target of the
    component that it stands beside (``eval_source`` beside ``source``); empty if there is neither.

    Args:
        path: of the component.
        raw: the whole recipe as plain data.
    """
    group, _, name = path.partition(".")
    if name and (Path(__file__).parent / group / f"{name}.yaml").is_file():
        return f"add it: {group}={name}"
    part = raw.get(group) if isinstance(raw, dict) else None
    if group == "callbacks" and (tracker := _tracker(name)):
        others = [other for other, node in (part or {}).items() if isinstance(node, dict) and _is_tracker(node)]
        return f"add it: tracker=[{','.join([*others, tracker])}]" if others else f"add it: tracker={tracker}"
    beside = part.get(name.removeprefix("eval_")) if isinstance(part, dict) and name.startswith("eval_") else None
    target = beside.get("_target_") if isinstance(beside, dict) else None
    return f"write {path}._target_={target}" if isinstance(target, str) and target != MISSING else ""


def _tracker(name: str) -> str:
    """The choice of the group ``tracker`` that brings a callback; empty if none does."""
    files = sorted((Path(__file__).parent / "tracker").glob("*.yaml"))
    return next((file.stem for file in files if f"\n{name}:" in file.read_text(encoding="utf-8")), "")


def _is_tracker(node: dict[str, Any]) -> bool:
    return str(node.get("_target_")).startswith("trireme.trainer.trackers.")


IN_FULL = "write it in full: package.module.Name"


def nested_components(value: Any, path: str) -> list[Problem]:
    """Problems of components at any depth of a plain value, and of required values that are missing."""
    if isinstance(value, dict):
        items: Any = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return []
    problems = []
    for key, item in items:
        where = f"{path}.{key}"
        if isinstance(item, dict) and "_target_" in item:
            problems += check_component(item, where)
        elif item == MISSING:
            problems.append(required(where))
        else:
            problems += nested_components(item, where)
    return problems


def required(path: str) -> Problem:
    """The problem of a value that must be given."""
    return Problem(path, "is required and has no value", f"set it: {path}=...")


def _import(name: str, path: str) -> tuple[Any, list[Problem]]:
    try:
        target = locate(name)
    except ImportError as error:
        return None, [Problem(path, f"cannot be imported: {error}", _nearest_target(name, error) or IN_FULL, name)]
    except Exception as error:  # the user's module may fail in any way while it is imported
        why = f"fails while it is imported: {type(error).__name__}: {error}"
        return None, [Problem(path, why, "correct its file", name)]
    if not callable(target):
        why = f"is a {type(target).__name__}, not a class or function"
        return None, [Problem(path, why, "write a class or function: package.module.Name", name)]
    return target, []


def _nearest_target(name: str, error: ImportError) -> str:
    module_name, _, attribute = name.rpartition(".")
    missing = getattr(error, "name", None)
    if missing and not f"{name}.".startswith(f"{missing}."):
        return f"install {missing.split('.')[0]}"  # the target exists, but a module that it imports does not
    if not module_name:
        return IN_FULL
    try:
        module = importlib.import_module(module_name)
    except ImportError:
        return _nearest_module(module_name)
    known = [known for known in dir(module) if not known.startswith("_")]
    near = did_you_mean(attribute, known)
    return near.replace("did you mean ", f"did you mean {module_name}.") if near.startswith("did") else ""


def _nearest_module(name: str) -> str:
    """The nearest sibling of the first part of a dotted module name that does not exist."""
    parent, _, child = name.rpartition(".")
    if name in OF_EXTRAS:
        return f"pip install 'trireme-train[{name}]'"
    if not parent:
        return f"install {name}, or put its folder on PYTHONPATH" if name else ""
    try:
        module = importlib.import_module(parent)
    except ImportError:
        return _nearest_module(parent)
    siblings = [found.name for found in pkgutil.iter_modules(getattr(module, "__path__", []))]
    near = did_you_mean(child, siblings)
    return near.replace("did you mean ", f"did you mean {parent}.") if near.startswith("did") else ""


def _check_arguments(
    target: Callable[..., Any], name: str, arguments: dict[str, Any], path: str, provided: Provided
) -> list[Problem]:
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some C functions have no signature
        return []
    by_keyword = {
        key: parameter
        for key, parameter in parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    given = provided.names | set(list(parameters)[: provided.positional])
    settable = [key for key in by_keyword if key not in given]
    hints = argument_hints(target)
    problems = []
    for key, value in arguments.items():
        where = f"{path}.{key}"
        if key in given:
            problems.append(Problem(where, "is set by trireme, so a recipe cannot set it", "leave it out"))
        elif key not in by_keyword:
            if not takes_any:
                why = f"unknown argument of {name}"
                problems.append(Problem(where, why, _in_component(path, key, settable), value))
        elif value != MISSING and not _has_component(value):
            fitted, found = check_value(value, hints.get(key, Any), where)
            problems += found or (beyond(value, where) if key in hints else [])
            if isinstance(fitted, list) and not isinstance(value, list):
                arguments[key] = fitted
    missing = [key for key in settable if by_keyword[key].default is inspect.Parameter.empty and key not in arguments]
    return problems + [required(f"{path}.{key}") for key in missing]


def arguments_of(target: Callable[..., Any]) -> set[str] | None:
    """Names of the arguments of a target; None if it accepts any argument or has no signature."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return {parameter.name for parameter in parameters}


def _in_component(path: str, key: str, settable: list[str]) -> str:
    fix = did_you_mean(str(key), settable) or ("leave it out: it takes no arguments" if not settable else "")
    return fix.replace("did you mean ", f"did you mean {path}.") if fix.startswith("did") else fix


def argument_hints(target: Any) -> dict[str, Any]:
    """Resolved annotations of a target's arguments, without those that do not resolve."""
    function = target.__init__ if inspect.isclass(target) else target
    function = inspect.unwrap(function)
    if not hasattr(function, "__globals__"):
        return {}
    hints = {}
    for key, hint in getattr(function, "__annotations__", {}).items():
        try:
            hints[key] = eval(hint, function.__globals__) if isinstance(hint, str) else hint
        except Exception:  # the annotation may use a name that is only imported for type checkers
            continue
    return hints


def _has_component(value: Any) -> bool:
    if isinstance(value, dict):
        return "_target_" in value or any(_has_component(item) for item in value.values())
    return isinstance(value, list) and any(_has_component(item) for item in value)
