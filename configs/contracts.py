"""Check that task, callbacks, optimizer and data loader of a recipe name classes or functions that a
run can use.

Their base classes, methods and the arguments of methods are compared with what a run calls.

Nothing is constructed here. Faults that only show at run time (return values of a task, exceptions of a constructor)
are reported by ``trainer/component_errors.py`` and ``trainer/tasks/checked.py``.
"""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..errors import Problem
from ..models.heads import HEADS
from ..trainer.callbacks.callback import Callback
from ..trainer.component import locate
from ..trainer.data.data_config import DataConfig
from ..trainer.target_kind import not_made_for
from ..trainer.tasks.task import Task, own_steps
from .values import nearest

TASK = {"loss": ("outputs", "targets"), "evaluate": ("outputs", "targets"), "metrics": ("sums",)}
"""Methods of a task -> names of their arguments."""
OPTIONAL = {
    "step": ("model", "inputs", "targets"),
    "evaluation_step": ("model", "inputs", "targets"),
    "configure": ("processor", "facts"),
    "count": ("targets",),
    "features": ("outputs",),
    "prompt": ("inputs", "targets"),
    "records": ("outputs", "targets"),
    "prediction": ("record", "facts", "tokenizer"),
    "record_metrics": ("records",),
}
"""Optional methods of a task -> names of their arguments."""
EVENTS = {
    name: tuple(inspect.signature(method).parameters)[1:]
    for name, method in vars(Callback).items()
    if inspect.isfunction(method)
}
"""Methods of a callback -> names of their arguments."""
BASES = {
    "task": "trireme.trainer.tasks.task.Task",
    "callback": "trireme.trainer.callbacks.callback.Callback",
    "optimizer": "torch.optim.Optimizer",
}
PAGE = "docs/extending.md has an example"


def check_task(task: dict[str, Any]) -> list[Problem]:
    """Problems of the class that ``task`` names."""
    cls = _class_of(task)
    if cls is None:
        return _check_function("task", task, "task", TASK)
    missing = [name for name in TASK if not callable(getattr(cls, name, None)) or name in _abstract(cls)]
    problems = []
    if missing:
        why = f"is not a task: it has no {' and no '.join(missing)}"
        fix = f"derive it from {BASES['task']} and write {', '.join(f'{name}{_call(TASK[name])}' for name in missing)}"
        problems.append(_problem("task", task, why, f"{fix}; {PAGE}"))
    calls = {name: call for name, call in (TASK | OPTIONAL).items() if callable(getattr(cls, name, None))}
    problems += [*_signatures("task", task, cls, calls), *_takes_batches(task, cls), *_other_parts(task, cls)]
    if not hasattr(cls, "head") and not inspect.isfunction(cls.__init__):  # a constructor may set head
        fix = f'write head = "causal_lm" in the class; {PAGE}'
        problems.append(_problem("task", task, "does not say which head its model gets", fix))
    return problems


def _other_parts(task: dict[str, Any], cls: type) -> Iterator[Problem]:
    """Problems of a task's head, samples and collator, and of methods that need each other."""
    head = getattr(cls, "head", None)
    if isinstance(head, str) and head not in HEADS:
        yield _problem("task", task, f"names the head {head}, which no model has", f"write one of {', '.join(HEADS)}")
    for needed, by in (("records", "scores_records"), ("features", "coupled")):
        if getattr(cls, by, False) and getattr(cls, needed, None) in (None, getattr(Task, needed)):
            fix = f"write def {needed}(self, {', '.join(OPTIONAL[needed])}), or leave {by} out"
            yield _problem("task", task, f"has {by} = True, but no {needed}", f"{fix}; {PAGE}")
    if getattr(cls, "coupled", False) and "step" in own_steps(cls):
        why = "is coupled, so its loss is that of features of the global batch, but it has a step of its own"
        yield _problem("task", task, why, f"leave step or coupled out; {PAGE}")
    if getattr(cls, "scores_records", False) and getattr(cls, "record_metrics", None) in (None, Task.record_metrics):
        fix = f"write def record_metrics(self, records), or leave scores_records out; {PAGE}"
        yield _problem("task", task, "has scores_records = True, but no record_metrics", fix)
    names = getattr(cls, "metric_names", None)
    if names is not None and (isinstance(names, str) or "loss" not in names):
        fix = 'write the names that metrics returns, as ("loss", "accuracy"), or leave it out'
        yield _problem("task", task, f"has metric_names = {names!r}, which are not names with loss among them", fix)
    yield from _named_parts(cls)


def _named_parts(cls: type) -> Iterator[Problem]:
    """Problems of the samples and of the collator that a task names, if they are the user's own."""
    samples, collator = getattr(cls, "samples", None), getattr(cls, "collator", None)
    for name, path in (("samples", samples), ("collator", collator)):
        if path is not None and (not isinstance(path, str) or "." not in path):
            why = f"has {name} = {path!r}, which is not a dotted path of a class"
            yield Problem("task", f"{cls.__qualname__} {why}", f'write it as "mine.module.Name"; {PAGE}')
        elif path is not None and not path.startswith("trireme."):  # those of trireme need torch, and keep the contract
            yield from _of_own_samples(path) if name == "samples" else _of_own_collator(path)


def _of_own_samples(path: str) -> list[Problem]:
    from ..trainer.data.open_samples import samples_problems  # imported here, since samples need torch

    return samples_problems(path)


def _of_own_collator(path: str) -> list[Problem]:
    from ..trainer.data.open_collator import collator_problems  # imported here, since collators need torch

    try:
        locate(path)
    except ImportError as error:
        return [Problem("task", f"names a collator that cannot be imported: {error}", "correct collator in the class")]
    return collator_problems({"_target_": path})


def _takes_batches(task: dict[str, Any], cls: type) -> Iterator[Problem]:
    """Refuse methods written for labels that were not shifted yet, since shifting them twice would be silent."""
    for name in ("loss", "evaluate"):
        with contextlib.suppress(TypeError, ValueError):
            if "batch" in inspect.signature(getattr(cls, name, None)).parameters:  # type: ignore[arg-type]
                why = f"has {name}(outputs, batch); a run calls it with targets, whose labels are shifted already"
                fix = f'write def {name}(self, outputs, targets), and use targets["labels"] without shifting them'
                yield _problem("task", task, why, f"{fix}; {PAGE}")


def check_loader(data: DataConfig) -> list[Problem]:
    """Problems of the class that ``data.loader`` names. A function's result is checked when the data are opened."""
    cls = _class_of(data.loader) if data.loader is not None else None
    if cls is None or data.loader is None:
        return []
    from ..trainer.data.own_loader import loader_flaws  # imported here, since samples need torch

    return [_problem("data.loader", data.loader, flaw, PAGE) for flaw in loader_flaws(cls)]


def check_callbacks(callbacks: dict[str, dict[str, Any]]) -> list[Problem]:
    """Problems of the classes that ``callbacks`` name."""
    problems = []
    for name, node in callbacks.items():
        cls = _class_of(node)
        if cls is not None:
            problems += _check_callback(f"callbacks.{name}", node, cls)
        else:
            problems += _check_function(f"callbacks.{name}", node, "callback", EVENTS)
    return problems


def check_optimizer(optimizer: dict[str, Any]) -> list[Problem]:
    """Problems of the class that ``optimizer`` names. The result of a function is checked when it is called."""
    cls = _class_of(optimizer)
    torch = sys.modules.get("torch")  # if torch was not imported, cls cannot be one of its optimizers
    if cls is None:
        return _check_function("optimizer", optimizer, "optimizer", ("step", "zero_grad", "state_dict"))
    if torch is not None and issubclass(cls, torch.optim.Optimizer):
        return []
    why = "is a class, but no torch.optim.Optimizer"
    fix = f"derive it from torch.optim.Optimizer, or name a function that returns one; {PAGE}"
    return [_problem("optimizer", optimizer, why, fix)]


def _check_callback(path: str, node: dict[str, Any], cls: type) -> list[Problem]:
    if any(base.__name__ == "TrainerCallback" and base.__module__.startswith("transformers.") for base in cls.__mro__):
        why = "is a callback of transformers' Trainer, whose events are called with other arguments"
        events = "on_step_end(trainer, state, control), on_evaluate(trainer, state, control, metrics)"
        fix = f"derive it from {BASES['callback']}; the events have the same names here: {events}"
        return [_problem(path, node, why, fix)]
    missing = [name for name in EVENTS if not callable(getattr(cls, name, None))]
    if missing:
        why = f"is not a callback: it has no {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}"
        return [_problem(path, node, why, f"derive it from {BASES['callback']}; {PAGE}")]
    return [*_signatures(path, node, cls, EVENTS), *_mistyped(path, node, cls)]


def _mistyped(path: str, node: dict[str, Any], cls: type) -> Iterator[Problem]:
    """Problems of methods whose names resemble an event, but which a run never calls."""
    for name in vars(cls):
        near = nearest(name, EVENTS, cutoff=0.85) if name.startswith("on_") and name not in EVENTS else None
        if near:
            why = f"has a method {name}, which no run calls"
            yield _problem(path, node, why, f"did you mean {near}? The events are {', '.join(EVENTS)}")


def _signatures(path: str, node: dict[str, Any], cls: type, calls: dict[str, tuple[str, ...]]) -> Iterator[Problem]:
    """Problems of methods that do not accept the arguments that a run passes."""
    for name, call in calls.items():
        method: Callable[..., Any] = getattr(cls, name)
        if (
            inspect.iscoroutinefunction(method)
            or inspect.isgeneratorfunction(method)
            or inspect.isasyncgenfunction(method)
        ):
            kind = "a generator (it yields)" if inspect.isgeneratorfunction(method) else "async"
            why = f"has an event or method {name} that is {kind}, so that its body would never run"
            yield _problem(path, node, why, f"write def {name}(self, {', '.join(call)}) without yield, async or await")
            continue
        try:
            static = isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod)
            inspect.signature(method).bind(*(() if static else ("self",)), *call)
        except TypeError:
            why = f"has {name}{inspect.signature(method)}, which a run calls as {name}{_call(call)}"
            yield _problem(path, node, why, f"write def {name}(self, {', '.join(call)})")
        except ValueError:  # the method has no signature
            continue


def _check_function(path: str, node: Any, kind: str, methods: Iterable[str]) -> list[Problem]:
    """The problem of a function that cannot return a component of this kind, found without calling it."""
    try:
        target = locate(node["_target_"])
    except Exception:  # reported elsewhere
        return []
    found = not_made_for(target, kind, methods, BASES[kind], of_libraries=kind == "optimizer")
    return [_problem(path, node, found[0], found[1])] if found else []


def _class_of(node: Any) -> type | None:
    """The class that a component names; None for functions and for failed imports, which are reported elsewhere."""
    try:
        target = locate(node["_target_"])
    except Exception:
        return None
    return target if inspect.isclass(target) else None


def _abstract(cls: type) -> frozenset[str]:
    return getattr(cls, "__abstractmethods__", frozenset())


def _call(names: tuple[str, ...]) -> str:
    return f"({', '.join(names)})"


def _problem(path: str, node: dict[str, Any], why: str, fix: str) -> Problem:
    return Problem(f"{path}._target_", why, fix, node["_target_"])
