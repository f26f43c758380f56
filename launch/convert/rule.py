"""``Rule``: the type of functions that convert one argument of another trainer (transformers, accelerate, axolotl ...)
into keys of a recipe. Helpers of these functions check an argument's value or choose a file of a configuration group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from ...configs.key_list import group_options
from ...configs.names_of_other_tools import value_fix
from ...errors import Problem, UserError
from .recipe_draft import Draft

Arguments = Mapping[str, Any]
Rule = Callable[[Draft, Any, Arguments], None]
"""Takes one argument into the draft: (draft, its value, all arguments)."""


def number(name: str, value: Any) -> float:
    """A finite number, which the file may hold as a text; true and false are none.

    Raises:
        UserError: the value is something else.
    """
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise UserError(Problem(name, "is not a number", "write a number in the file", value))
    return found


def whole(draft: Draft, name: str, value: Any, least: int = 0) -> int | None:
    """A whole number of at least ``least``; None for any other number, which is then noted in the draft.

    Raises:
        UserError: the value is no number.
    """
    found = number(name, value)
    if found.is_integer() and found >= least:
        return int(found)
    draft.leave(name, value, f"is below {least}" if found < least else "is not a whole number")
    return None


def switch(draft: Draft, name: str, value: Any) -> bool:
    """Whether an argument is on. What is neither on nor off is noted in the draft, and counts as off."""
    plain = str(value).lower() if isinstance(value, bool | int | str) else ""
    if plain not in ("true", "1", "yes", "on", "false", "0", "no", "off"):
        draft.leave(name, value, "is neither true nor false")
    return plain in ("true", "1", "yes", "on")


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
    """Choose an option of a group by another tool's name for it; a difference between the two is noted in the draft."""
    plain = str(getattr(value, "value", value))
    if plain in group_options(group):
        draft.choose(group, plain)
        return
    found = value_fix(group, plain).removeprefix("write ")
    taken, _, remark = found.partition("; ")
    words = taken.split()
    if words and all("=" in word for word in words):
        for word in words:
            draft.assign(word)
        if remark:
            draft.leave(name, value, f"{taken} is taken: {remark}")
    elif words:
        draft.leave(name, value, found)
    else:
        draft.leave(name, value, f"is not offered; choose one of {', '.join(group_options(group))}")
