"""Call the user's function that gives a trial its values (``search.space=module.function``), and check its result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ...errors import Problem, UserError
from .objective import name_of

FIX = "return values by dotted key: {'optimizer.lr': trial.suggest_float('lr', 1e-5, 1e-2, log=True)}"


def call_space(function: Callable[[Any], Any], trial: Any) -> dict[str, Any]:
    """Values by key that the user's function gives for a trial of optuna.

    Raises:
        UserError: the function fails, or returns something else than plain values by key.
    """
    shown = name_of(function)
    try:
        values = function(trial)
    except (Exception, SystemExit) as error:  # the user's own code may fail in any way
        why = f"fails for trial {trial.number}: {type(error).__name__}: {error}"
        fix = "it takes a trial of optuna and returns values by key, such as {'optimizer.lr': ...}"
        raise UserError(Problem("search.space", why, fix, shown)) from None
    if not isinstance(values, Mapping) or not values or not all(isinstance(key, str) for key in values):
        raise UserError(Problem("search.space", "its function does not return values by key", FIX, shown))
    for key, value in values.items():
        if wrong := next(_unfit(value), ""):
            why = f"its function returns {wrong} for {key} in trial {trial.number}"
            raise UserError(Problem("search.space", why, "return a finite number, a text, or lists of them", shown))
    return dict(values)


def _unfit(value: Any) -> Iterator[str]:
    """Values that a recipe cannot hold, described in words."""
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{value}"
    elif isinstance(value, Mapping):
        for inside in value.values():
            yield from _unfit(inside)
    elif isinstance(value, list | tuple):
        for inside in value:
            yield from _unfit(inside)
    elif not (value is None or isinstance(value, bool | int | float | str)):
        yield f"an object of type {type(value).__name__}"
