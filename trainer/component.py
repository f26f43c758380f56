"""Build the components of a recipe: objects for the sections that name a Python class or function by ``_target_``.

Callbacks, data sources, tasks, collators and optimizers are components, so a recipe can use a class of the user's own
by its dotted path (``models/locate.py``), without any registration. The other keys of the section are keyword
arguments, which are checked against the signature before a run starts (``configs/validate.py``). An argument may be a
component itself; if such a nested component cannot be built, ``NestedFailed`` says where in the recipe it is.
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import ComponentFailed, Problem, UserError
from ..models.locate import locate

Component = dict[str, Any]
"""``{"_target_": "package.module.Name", **keyword arguments}``; arguments may be components themselves."""


class NestedFailed(Exception):
    """A component among the arguments of another one cannot be built.

    Args:
        path: its place below the outer component, such as ``inner`` or ``parts.0``.
        component: the nested component.
        error: the exception of its constructor.
    """

    def __init__(self, path: str, component: Component, error: BaseException) -> None:
        self.path, self.component, self.error = path, component, error
        super().__init__(f"{path}: {type(error).__name__}: {error}")

    def problem(self, outer: str) -> Problem:
        """The problem to report, under the key of the nested component.

        A ``ValueError`` that begins with ``argument=`` is reported under the key of that argument.

        Args:
            outer: key of the outer component.
        """
        where, text = f"{outer}.{self.path}", " ".join(str(self.error).split())
        why, _, fix = text.partition("; ")
        named = re.match(r"([A-Za-z_]\w*)=", why)
        if isinstance(self.error, ValueError) and named and named[1] in self.component:
            return Problem(f"{where}.{named[1]}", why, fix or "correct it; --debug shows where")
        what = f"{type(self.error).__name__}{': ' if text else ''}{text}"
        why = f"{self.component['_target_']} cannot be built: {what}"
        return Problem(where, why, "correct its code or its arguments; --debug shows the line")


def instantiate(component: Component, *args: Any, **extra: Any) -> Any:
    """Call the target with the recipe's arguments, and with ``args`` and ``extra`` from the engine.

    Unlike ``hydra.utils.instantiate`` it never copies or converts ``args`` (live parameters pass through here).

    Raises:
        NestedFailed: a component among the arguments cannot be built.
    """
    return locate(component["_target_"])(*args, **built_arguments(component), **extra)


def built_arguments(component: Component) -> dict[str, Any]:
    """The recipe's arguments of a component, with the components among them built.

    Raises:
        NestedFailed: one of these cannot be built.
    """
    return {key: _nested(value, key) for key, value in component.items() if key != "_target_"}


def _nested(value: Any, path: str) -> Any:
    if isinstance(value, list):
        return [_nested(item, f"{path}.{index}") for index, item in enumerate(value)]
    if not isinstance(value, dict):
        return value
    if "_target_" not in value:
        return {key: _nested(item, f"{path}.{key}") for key, item in value.items()}
    try:
        return instantiate(value)
    except NestedFailed as error:
        raise NestedFailed(f"{path}.{error.path}", error.component, error.error) from error.error
    except (UserError, ComponentFailed, MemoryError):
        raise
    except (Exception, SystemExit) as error:  # a constructor may fail in any way
        raise NestedFailed(path, value, error) from error
