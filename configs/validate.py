"""Turn plain data from YAML into typed configuration objects (dataclasses), and report *all* problems at once. Also
list the keys and defaults of these dataclasses.

Configuration classes are ordinary dataclasses with checks in ``__post_init__``; this module does not depend on any of
them. Unknown keys are refused at every depth with the nearest known key. A wrong type is reported with the expected
one. A ``ValueError`` of ``__post_init__`` becomes a problem of its field. Components are checked against the signature
of their target.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
import types
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeGuard, TypeVar, get_args, get_origin, get_type_hints

from ..errors import Problem
from .components import MISSING, Provided, check_component, nested_components, required, target_fix
from .suggest import nearest_key
from .values import beyond, check_value, is_union, wrong_type

T = TypeVar("T")


class ComponentNode(dict[str, Any]):
    """Stand-in for ``Component`` in resolved annotations, since ``typing`` cannot tell the alias from any mapping."""


UNKNOWN_KEY = "unknown key"
"""Reason of a key that the schema does not have under any choice of options."""
_INVALID = object()
"""Mark of a value with a reported problem, so that nothing is reported twice."""


def read(raw: Any, cls: type[T], provided: Mapping[str, Provided] | None = None) -> tuple[T | None, list[Problem]]:
    """Build a dataclass from plain data.

    Args:
        raw: nested dicts, lists and scalars.
        cls: the root dataclass.
        provided: dotted path of a component -> arguments that the engine itself passes.

    Returns:
        The object, or None if there are problems; and the problems, in the order of the schema.
    """
    reader = _Reader(cls, provided or {}, raw)
    result = reader.dataclass(raw, cls, "")
    return (None if reader.problems else result), reader.problems


def read_parts(
    raw: Any, cls: type, provided: Mapping[str, Provided] | None = None
) -> tuple[dict[str, Any], list[Problem]]:
    """Like ``read``, but returns every field of the root with usable values, without unknown keys.

    Checks across fields can then be reported together with the problems of other parts.
    """
    reader = _Reader(cls, provided or {}, raw)
    parts = reader.fields(raw, cls, "")
    return {name: value for name, value in parts.items() if value is not _INVALID}, reader.problems


def schema_paths(cls: type, prefix: str = "") -> Iterator[str]:
    """Dotted paths of every field of a dataclass and of the dataclasses in it."""
    for name, hint in _fields(cls).items():
        yield f"{prefix}{name}"
        nested = _dataclass_in(hint)
        if nested:
            yield from schema_paths(nested, f"{prefix}{name}.")


def schema_alternatives(cls: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Pairs of dotted paths that exclude each other, which dataclasses list in ``ALTERNATIVES``."""
    for one, other in getattr(cls, "ALTERNATIVES", ()):
        yield f"{prefix}{one}", f"{prefix}{other}"
    for name, hint in _fields(cls).items():
        if nested := _dataclass_in(hint):
            yield from schema_alternatives(nested, f"{prefix}{name}.")


def schema_defaults(cls: type) -> dict[str, Any]:
    """Defaults of every field as plain data; ``???`` for a field without one."""
    defaults: dict[str, Any] = {}
    hints = _fields(cls)
    for field in dataclasses.fields(cls):
        if field.default is not dataclasses.MISSING:
            default = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            nested = hints[field.name]
            defaults[field.name] = schema_defaults(nested) if _is_dataclass(nested) else MISSING
            continue
        defaults[field.name] = _plain_data(default)
    return defaults


def _plain_data(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


class _Reader:
    """Walks data and types side by side for one reading, and collects the problems."""

    def __init__(self, root: type, provided: Mapping[str, Provided], raw: Any) -> None:
        self.raw = raw
        self.known = list(schema_paths(root))
        self.provided = provided
        self.problems: list[Problem] = []

    def dataclass(self, raw: Any, cls: type, path: str) -> Any:
        values = self.fields(raw, cls, path)
        wrong = {name for name, value in values.items() if value is _INVALID}
        try:
            made = cls(**{name: value for name, value in values.items() if name not in wrong})
            return _INVALID if wrong else made
        except TypeError:  # expected if a wrong value belongs to a field without a default
            if not wrong:
                raise
        except ValueError as error:
            # A wrong field has its default here, so a message about it is not about the user's value.
            lines = [line for line in str(error).splitlines() if not wrong & set(re.findall(r"\w+", line))]
            self.problems += [problem_of(line, path, values) for line in lines]
        return _INVALID

    def fields(self, raw: Any, cls: type, path: str) -> dict[str, Any]:
        """Values by field; ``_INVALID`` for values that are missing or do not fit."""
        hints = _fields(cls)
        if not isinstance(raw, dict):
            self.problems.append(
                Problem(path or "recipe", "expected a mapping of options", _options_of(path, hints), raw)
            )
            return dict.fromkeys(hints, _INVALID)
        replaced = getattr(cls, "REPLACED", {})
        self.problems += [
            _replaced(key, replaced[key], path, raw[key])
            if key in replaced
            else self._unknown(key, hints, path, raw[key])
            for key in raw
            if key not in hints
        ]
        values = {}
        for field in dataclasses.fields(cls):
            where = f"{path}.{field.name}" if path else field.name
            if field.name in raw:
                values[field.name] = self.value(raw[field.name], hints[field.name], where)
            elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
                self.problems.append(required(where))
                values[field.name] = _INVALID
        return values

    def value(self, raw: Any, hint: Any, path: str) -> Any:
        if isinstance(raw, str) and raw == MISSING:
            self.problems.append(required(path))
            return _INVALID
        if is_union(hint):
            return self._union(raw, hint, path)
        if hint is ComponentNode:
            fix = target_fix(path, self.raw)
            self.problems += check_component(raw, path, self.provided.get(path, Provided()), fix)
            return raw
        if _is_dataclass(hint):
            return self.dataclass(raw, hint, path)
        inside = get_args(hint)
        if get_origin(hint) is dict and inside[1] is not Any and isinstance(raw, dict):
            return _whole({key: self.value(item, inside[1], f"{path}.{key}") for key, item in raw.items()})
        if _parts_by_name(hint):
            what, example = "components", "{_target_: package.module.Name}"
            if inside[1] is not ComponentNode:
                what, example = "options", "{" + ", ".join(f"{name}: ..." for name in _fields(inside[1])) + "}"
            fix = f"name each of them: {path}.NAME={example}"
            self.problems.append(Problem(path, f"expected a mapping of {what} by name", fix, raw))
            return _INVALID
        if get_origin(hint) is list and dataclasses.is_dataclass(inside[0]) and isinstance(raw, list):
            return _whole([self.value(item, inside[0], f"{path}.{index}") for index, item in enumerate(raw)])
        return self._plain(raw, hint, path)

    def _union(self, raw: Any, hint: Any, path: str) -> Any:
        """Read a union: ``X | None`` with a structured ``X`` is walked, plain types are checked as a whole."""
        members = [member for member in get_args(hint) if member is not types.NoneType]
        if raw is None and len(members) < len(get_args(hint)):
            return None
        if len(members) == 1 and _parts_by_name(members[0]):
            return self.value(raw, members[0], path)
        structured = [member for member in members if member is ComponentNode or dataclasses.is_dataclass(member)]
        if structured and (isinstance(raw, dict) or len(members) == 1):
            return self.value(raw, structured[0], path)
        if structured:
            plain = [member for member in members if member not in structured]
            if all(check_value(raw, member, path)[1] for member in plain):
                self.problems.append(wrong_type(raw, hint, path))
                return _INVALID
            return raw
        return self._plain(raw, hint, path)

    def _plain(self, raw: Any, hint: Any, path: str) -> Any:
        value, problems = check_value(raw, hint, path)
        if problems := beyond(raw, path) or problems:
            self.problems += problems
            return _INVALID
        self.problems += nested_components(raw, path)
        return value

    def _unknown(self, key: Any, siblings: Mapping[str, Any], path: str, value: Any) -> Problem:
        prefix = f"{path}." if path else ""
        suggestion = nearest_key(str(key), siblings, path, self.known)
        fix = f"did you mean {suggestion}?" if suggestion else f"known here: {', '.join(siblings)}"
        return Problem(f"{prefix}{key}", UNKNOWN_KEY, fix, _shown(value))


def _options_of(path: str, hints: Mapping[str, Any]) -> str:
    """The fix for a single value where a part of the recipe belongs."""
    example = next(iter(hints), "key")
    return f"write its options, for example {path}.{example}=..." if path else "write a mapping of keys"


def _replaced(key: str, entry: tuple[str, str], path: str, value: Any) -> Problem:
    """The problem of a name from another tool; dataclasses list such names in ``REPLACED`` with reason and fix."""
    return Problem(f"{path}.{key}" if path else key, *entry, _shown(value))


def _shown(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool)) and value != MISSING else None


def _whole(values: Any) -> Any:
    """``values``, or ``_INVALID`` if one of them is."""
    items = values.values() if isinstance(values, dict) else values
    return _INVALID if any(item is _INVALID for item in items) else values


def problem_of(message: str, path: str, values: Mapping[str, Any]) -> Problem:
    """The problem behind a message of ``__post_init__``, which has the form ``field=value is wrong ...; fix``."""
    why, _, fix = message.partition("; ")
    found = re.match(r"([A-Za-z_]\w*)(\.\w+)*", why)
    if found is None or found[1] not in values:
        return Problem(path or "recipe", why, fix)
    field, value = f"{path}.{found[0]}" if path else found[0], None
    why = why[found.end() :].lstrip()
    if found[2] is None:
        value = values[found[1]]
        if isinstance(value, dict) and any(map(dataclasses.is_dataclass, value.values())):
            value = ", ".join(value)
        elif dataclasses.is_dataclass(value):  # the message names it in a word
            value = written[1] if (written := re.match(r"=(\S+) ", why)) else None
        for shown in (f"={value!r} ", f"={value} "):
            why = why.removeprefix(shown)
    elif written := re.match(r"=(\S+) ", why):
        with suppress(ValueError, SyntaxError):
            value, why = ast.literal_eval(written[1]), why[written.end() :]
    return Problem(field, why.removeprefix("="), fix, value)


@functools.cache
def _fields(cls: Any) -> dict[str, Any]:
    """Names of a dataclass's fields with their types."""
    hints = get_type_hints(cls, localns={"Component": ComponentNode})
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _dataclass_in(hint: Any) -> type | None:
    members = get_args(hint) if is_union(hint) else (hint,)
    return next((member for member in members if _is_dataclass(member)), None)


def _parts_by_name(hint: Any) -> bool:
    """Whether a type is a mapping of components or dataclasses by name."""
    inside = get_args(hint)
    return get_origin(hint) is dict and (inside[1] is ComponentNode or _is_dataclass(inside[1]))


def _is_dataclass(hint: Any) -> TypeGuard[type]:
    return isinstance(hint, type) and dataclasses.is_dataclass(hint)
