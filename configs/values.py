"""Check one plain value against a type annotation, describe the expected type in words, and find the known name that is
most like a mistyped one.

pydantic checks strictly: ``"3"`` is not an integer, ``true`` is not a number. Most messages are trireme's own, since
users need "expected an integer, got a string" rather than a list of pydantic's errors.
"""

from __future__ import annotations

import difflib
import json
import math
import types
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union, get_args, get_origin

from ..errors import Problem, why_no_number

_NAMES = {int: "an integer", float: "a number", str: "a string", bool: "true or false", type(None): "null"}
LARGEST = 2.0**63
"""Numbers of a recipe are below it: tensors and files count in 64 bits."""
_PLURAL = {int: "integers", float: "numbers", str: "strings", bool: "booleans"}


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The known name most like ``name``, the first of equals; None if none is near."""
    scored = [(likeness(name, candidate), candidate) for candidate in known]
    best = max(scored, key=lambda one: one[0], default=(0.0, ""))
    return best[1] if best[0] >= cutoff else None


def likeness(name: str, known: str) -> float:
    """Likeness of two names from 0 to 1; case and dashes do not count. A shorter ``name`` is also compared with the
    beginning of ``known``, so that ``fsdpp`` finds ``fsdp_full_shard`` and not ``dp_tp``. Names of the same letters
    are near, so that ``sourcse`` finds ``sources`` and not ``source``."""
    a, b = _plain(name), _plain(known)
    whole = difflib.SequenceMatcher(None, a, b).ratio()
    if sorted(a) == sorted(b):
        return max(whole, 0.95)
    if len(a) < 4 or len(b) <= len(a):
        return whole
    beginning = difflib.SequenceMatcher(None, a, b[: len(a)]).ratio()
    return max(whole, 0.9 * beginning) if beginning >= 0.75 else whole


def did_you_mean(name: str, known: Sequence[str], cutoff: float = 0.6) -> str:
    """The fix for an unknown name: the nearest known name, or the list of known names, of many the first."""
    near = nearest(name, known, cutoff)
    if near:
        return f"did you mean {near}?"
    if len(known) > 40:
        return f"use one of the {len(known)} known here: {', '.join(known[:5])}, ..."
    return f"known here: {', '.join(known)}" if known else ""


def is_union(hint: Any) -> bool:
    return get_origin(hint) in (Union, types.UnionType)


def beyond(value: Any, path: str) -> list[Problem]:
    """The problem of a number that does not fit into 64 bits, or is not finite, also within a list."""
    if isinstance(value, list):
        return [problem for index, item in enumerate(value) for problem in beyond(item, f"{path}.{index}")]
    if not isinstance(value, int | float) or abs(value) < LARGEST:
        return []
    fix = "write a number" if math.isnan(value) else "write a smaller number"
    return [Problem(path, why_no_number(value), fix, value)]


def check_value(value: Any, hint: Any, path: str) -> tuple[Any, list[Problem]]:
    """Validate a value from YAML against an annotation; returns the value, converted if needed, and its problems.

    An integer becomes a float where a float is expected. Annotations that pydantic cannot check on plain data (a
    tensor, a forward reference) accept every value.
    """
    from pydantic import ValidationError

    adapter = _adapter(hint)
    if adapter is None:
        return value, []
    if _list_of_one(value, hint):
        value = [value]
    try:
        # The JSON mode of strict validation accepts a list for a tuple and a string for a path, as YAML writes them;
        # the Python mode would refuse both.
        return adapter.validate_json(json.dumps(value, default=str), strict=True), []
    except ValidationError as error:
        return value, _problems(error, value, hint, path)


def _list_of_one(value: Any, hint: Any) -> bool:
    """Whether a single value stands where only a list is allowed, and the list could hold it."""
    members = [member for member in (get_args(hint) if is_union(hint) else (hint,)) if member is not type(None)]
    if value is None or isinstance(value, (list, dict)) or not members:
        return False
    lists = [member for member in members if get_origin(member) in (list, set, Sequence) or member in (list, set)]
    return len(lists) == len(members) and any(
        not get_args(member) or not check_value(value, get_args(member)[0], "")[1] for member in lists
    )


def describe(hint: Any) -> str:
    """The values of a type annotation in plain words."""
    if hint in _NAMES:
        return _NAMES[hint]
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if is_union(hint):
        return " or ".join(describe(member) for member in arguments)
    if origin in (list, tuple, set, Sequence) or hint in (list, tuple, set):
        inside = next(iter(arguments), None)
        return f"a list of {_PLURAL[inside]}" if inside in _PLURAL else "a list"
    if origin is dict or hint is dict:
        return "a mapping"
    return f"a {getattr(hint, '__name__', hint)}"


def wrong_type(value: Any, hint: Any, path: str) -> Problem:
    """The problem of a value of the wrong type, with a fix where one is evident."""
    choices = _choices(get_args(hint) if is_union(hint) else (hint,))
    if any(type(choice) is type(value) for choice in choices):  # the type is right, so it need not be told
        return Problem(path, f"expected {describe(hint)}", _fix(value, hint), value)
    return Problem(path, f"expected {describe(hint)}, got {_kind(value)}", _fix(value, hint), value)


def _choices(members: Sequence[Any]) -> list[Any]:
    """The values of the enumerations among the members of a type."""
    return [choice for member in members if get_origin(member) is Literal for choice in get_args(member)]


def _problems(error: Any, value: Any, hint: Any, path: str) -> list[Problem]:
    if is_union(hint) or get_origin(hint) is Literal:
        return [wrong_type(value, hint, path)]
    problems: dict[str, Problem] = {}
    for detail in error.errors(include_url=False):
        where = ".".join([path, *(str(part) for part in detail["loc"] if _is_place(part, value))])
        if where == path:
            problems[where] = wrong_type(value, hint, path)
        else:
            problems.setdefault(where, _inside(where, detail, hint))
    return list(problems.values())


def _inside(where: str, detail: Any, hint: Any) -> Problem:
    """The problem of one item of a list or mapping."""
    members = get_args(hint) if is_union(hint) else (hint,)
    inside = next((get_args(member)[-1] for member in members if get_args(member)), None)
    itself = len(detail["loc"]) == 1 and get_origin(inside) in (dict, list)
    if inside in _NAMES or get_origin(inside) is Literal or itself:
        return wrong_type(detail["input"], inside, where)
    return Problem(where, detail["msg"][0].lower() + detail["msg"][1:], f"write {describe(hint)}", detail["input"])


def _is_place(part: Any, value: Any) -> bool:
    """Whether a part of an error's location is an index or key (unions add names of types)."""
    return isinstance(part, int) or (isinstance(value, dict) and part in value)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    kinds = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "a mapping",
    }
    return kinds.get(type(value), type(value).__name__)


def _fix(value: Any, hint: Any) -> str:
    members = get_args(hint) if is_union(hint) else (hint,)
    if isinstance(value, float) and int in members and value.is_integer():
        return f"write {int(value)}"
    if isinstance(value, str) and any(kind in members for kind in (int, float, bool)):
        parsed = _as_yaml(value)
        if any(type(parsed) is kind for kind in members):
            return f"write it without quotes: {parsed}"
    choices = [str(choice) for choice in _choices(members)]
    longer = (choice for choice in choices if len(choice) > 2 and str(value).lower().startswith(choice.lower()))
    if near := nearest(str(value), choices) or next(longer, None):
        return f"did you mean {near}?"
    if value is None:
        return f"write {describe(hint)}, or leave it out"
    if _lists(members) and isinstance(value, dict) and (items := _items(value)):
        import yaml

        whole = yaml.safe_dump(items, default_flow_style=True, width=math.inf, sort_keys=False)
        return f"write the whole list: {whole.strip()}"
    return f"write {_example(members) or describe(hint)}"


def _items(value: dict[Any, Any]) -> list[Any]:
    """The items of a list that Hydra has made a mapping of numbers, as it does with an override such as
    ``rules.0.name=x`` where there is no list yet; empty for other mappings."""
    numbered = {str(key): item for key, item in value.items()}
    places = [str(place) for place in range(len(value))]
    return [numbered[place] for place in places] if numbered.keys() == set(places) else []


def _lists(members: Sequence[Any]) -> list[Any]:
    """Those members of a type that YAML writes as lists."""
    kinds = (list, tuple, set, Sequence)
    return [member for member in members if get_origin(member) in kinds or member in kinds]


def _example(members: Sequence[Any]) -> str:
    """An example of a value in YAML, for types whose notation may be unknown to the user."""
    if bool in members:
        return "true or false"
    if lists := _lists(members):
        inside = next(iter(get_args(lists[0])), str)
        return f"a list: [{', '.join({int: ('1', '2'), float: ('0.9', '0.95')}.get(inside, ('a', 'b')))}]"
    if dict in members or any(get_origin(member) is dict for member in members):
        return "a mapping: {key: value}"
    return ""


def _as_yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None


def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter
    from pydantic.errors import PydanticUserError

    if hint is Any or isinstance(hint, str):
        return None
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(strict=True))
        adapter.rebuild(raise_errors=True)
        return adapter
    except (PydanticUserError, NameError, TypeError):
        return None


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")
