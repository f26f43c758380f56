"""Read the arguments of another training tool from a YAML or JSON file; refuse repeated keys and infinite numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ..configs.check_characters import unreadable
from ..errors import Problem, UserError
from ..models.json_file import parse_json, reason
from .hydra_errors import HERE, yaml_problem
from .recipe_file import TOO_DEEP, doubled, text_of


def read_arguments(path: Path, field: str = "FILE") -> dict[str, Any]:
    """The arguments in a file: name -> value.

    Args:
        field: key or option that names the file, for messages.

    Raises:
        UserError: the file cannot be read, is no mapping, is empty, or holds values that no recipe can hold.
    """
    fix = "give a YAML or JSON file with arguments by name"
    text = text_of(path)
    if not text.strip():
        raise UserError(Problem(field, "is empty", fix, str(path)))
    try:
        read = parse_json(text, object_pairs_hook=_with_unique_keys) if path.suffix == ".json" else _yaml(path, text)
    except json.JSONDecodeError as error:
        where = f"{path}:{error.lineno}:{error.colno}"
        raise UserError(Problem(where, f"is not JSON: {reason(error)}", HERE)) from None
    except yaml.YAMLError as error:
        raise UserError(yaml_problem(error, str(path), text)) from None
    except RecursionError:
        raise UserError(Problem(str(path), *TOO_DEEP)) from None
    except ValueError as error:  # a day that no calendar has, brackets of JSON without end
        raise UserError(Problem(str(path), f"cannot be read: {error}", "correct it")) from None
    if not isinstance(read, dict) or not all(isinstance(name, str) for name in read):
        raise UserError(Problem(field, "is not a mapping of arguments by name", fix, str(path)))
    if not read:
        raise UserError(Problem(field, "has no arguments", fix, str(path)))
    if problems := [*unreadable(read), *_infinite(read)]:
        raise UserError(*problems)
    return read


def _yaml(path: Path, text: str) -> Any:
    """The content of a YAML file.

    Raises:
        UserError: a key is given twice.
    """
    if (node := yaml.compose(text, Loader=yaml.SafeLoader)) is not None and (found := list(doubled(node, str(path)))):
        raise UserError(*found)
    return yaml.safe_load(text)


def _with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping from the pairs of a JSON object.

    Raises:
        UserError: a key is given twice.
    """
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise UserError(Problem(name, f"is given twice, as {found[name]!r} too", "keep one of them", value))
        found[name] = value
    return found


def _infinite(raw: Any, path: str = "") -> Iterator[Problem]:
    """Problems of numbers that are not finite, at any depth."""
    for key, value in raw.items() if isinstance(raw, dict) else enumerate(raw):
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, float) and not math.isfinite(value):
            yield Problem(where, "is not finite", "write a number in the file", value)
        elif isinstance(value, dict | list):
            yield from _infinite(value, where)
