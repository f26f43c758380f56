"""Find out which fields of a model configuration transformers refuses, since its own errors often do not name them.

The fields are found by trial: each field is left out in turn, and the rest is validated again. This works for any error
that transformers raises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from ..errors import Problem, short, why_no_number

LARGEST = 2**63
"""Sizes are below it: tensors count in 64 bits."""
KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list",
    "dict": "a mapping",
    "NoneType": "null",
}
MOST = 20
"""Fields that are blamed in one message."""


def blame(
    accepted: Callable[[dict[str, Any]], Any], values: Mapping[str, Any], own: Mapping[str, Any], weights: str | None
) -> list[Problem]:
    """A problem for every field without which the others are accepted; if there is no such field, one with the error
    itself.

    Args:
        accepted: makes the configuration of fields; raises what transformers raises.
        values: all fields.
        own: those of them that the recipe gives; the others are those of the weights' config.json.
        weights: as the recipe names them.
    """
    left, problems = dict(values), []
    while len(problems) < MOST:
        try:
            accepted(left)
            return problems
        except Exception as error:  # transformers raises several kinds of its own for wrong field types and values
            name = _named(error, left)
            names = [name] if name else _by_leaving_out(accepted, left, own)
            if not names:
                return [*problems, _without_field(error, left, own, weights)]
            name, *others = names
            also = "".join(f", or another model.config.{other}" for other in others)
            fix = f"write another value{also}"
            problems.append(_problem(name, _reason(error), left.pop(name), own, weights, fix))
    return problems


def wrong_types(
    cls: Callable[..., Any], values: Mapping[str, Any], own: Mapping[str, Any], weights: str | None
) -> list[Problem]:
    """Problems of fields whose types a configuration class refuses by name. Sizes are not compared with each other.

    Args:
        cls: the class; the other arguments are those of ``blame``.
    """
    left, problems = dict(values), []
    while len(problems) < MOST:
        try:
            cls(**left)
            break
        except Exception as error:  # transformers raises exceptions of many kinds
            if (name := _named(error, left)) is None:
                break
            problems.append(_problem(name, _reason(error), left.pop(name), own, weights))
    return problems


def beyond(values: Mapping[str, Any], own: Mapping[str, Any], weights: str | None) -> list[Problem]:
    """Numbers that no field can hold."""
    wrong = {name: value for name, value in values.items() if isinstance(value, int | float) and not _fits(value)}
    fixes = {name: "write a number" if value != value else "write a smaller number" for name, value in wrong.items()}
    return [_problem(name, why_no_number(value), value, own, weights, fixes[name]) for name, value in wrong.items()]


def _fits(value: float) -> bool:
    return isinstance(value, bool) or (math.isfinite(value) if isinstance(value, float) else abs(value) < LARGEST)


WRAPPED = re.compile(r"^Class validation error for validator '\w+': (\w+: )?")
"""Words that strict dataclasses write before a message."""


def _named(error: Exception, values: Mapping[str, Any]) -> str | None:
    """The field that the error of a strict dataclass names."""
    found = re.search(r"[Ff]ield '(\w+)'", str(error))
    return found[1] if found and found[1] in values else None


def _by_leaving_out(
    accepted: Callable[[dict[str, Any]], Any], values: Mapping[str, Any], own: Mapping[str, Any]
) -> list[str]:
    """The fields without each of which the others are accepted, such as a size and a count that must divide it; those
    of the recipe come first."""
    found = []
    for name in sorted(values, key=lambda name: name not in own):
        with suppress(Exception):
            accepted({other: value for other, value in values.items() if other != name})
            found.append(name)
    return found


def _reason(error: Exception) -> str:
    """The reason in an error, without the words in which the library names the field."""
    text = " ".join(str(error).split()) or type(error).__name__
    if found := re.search(r"Field '\w+' with value .* doesn't match any type in \((.*?)\)\.", text):
        kinds = [str(KINDS.get(kind, kind)) for kind in re.findall(r"(\w+)'>", found[1])]
        return f"must be {' or '.join(kinds) or 'of another type'}"
    if found := re.search(r"Field '\w+' expected (\w+), got (\w+)", text):
        return f"must be {KINDS.get(found[1], found[1])}"
    return f"is not accepted: {WRAPPED.sub('', text)}"


def _problem(
    name: str, why: str, value: Any, own: Mapping[str, Any], weights: str | None, fix: str = "write another value"
) -> Problem:
    if name in own or weights is None:
        return Problem(f"model.config.{name}", why, fix, value)
    why = f"has a config.json whose field {name} = {short(value)} {why}"
    return Problem("model.weights", why, f"correct that file, or set model.config.{name}", weights)


def _without_field(error: Exception, values: Mapping[str, Any], own: Mapping[str, Any], weights: str | None) -> Problem:
    """The problem with the whole error, if no single field is to blame."""
    why = " ".join(str(error).split()) or type(error).__name__
    if own or weights is None:
        named = ", ".join(name for name in own if name in values)
        return Problem("model.config", f"{why} (fields given: {named})", "change the fields named in this message")
    return Problem("model.weights", f"has a config.json that is not accepted: {why}", "fetch it again", weights)
