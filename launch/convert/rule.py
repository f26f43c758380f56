"""The type of a conversion rule for one argument of another tool, and a helper that chooses a group's option."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...configs.key_list import group_options
from ...configs.other_names import value_fix
from ...errors import Problem, UserError
from .recipe_draft import Draft

Arguments = Mapping[str, Any]
Rule = Callable[[Draft, Any, Arguments], None]
"""Takes one argument into the draft: (draft, its value, all arguments)."""


def number(name: str, value: Any) -> float:
    """A finite number, which the file may hold as a text.

    Raises:
        UserError: the value is something else.
    """
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(Problem(name, "is not a number", "write a number in the file", value))
    return found


def mapping(name: str, value: Any) -> dict[str, Any]:
    """A mapping; an empty one stands for no value.

    Raises:
        UserError: the value is something else.
    """
    if not isinstance(value or {}, dict):
        raise UserError(
            Problem(name, "is not a mapping", f"write a mapping in the file: {name}: {{KEY: value}}", value)
        )
    return value or {}


def option(draft: Draft, group: str, name: str, value: Any) -> None:
    """Choose an option of a group by another tool's name for it."""
    plain = str(getattr(value, "value", value))
    if plain in group_options(group):
        draft.choose(group, plain)
        return
    found = value_fix(group, plain).removeprefix("write ")
    words = found.split()
    if words and all("=" in word for word in words):
        for word in words:
            draft.assign(word)
    elif words:
        draft.leave(name, value, found)
    else:
        draft.leave(name, value, f"choose one of {', '.join(group_options(group))}")
