"""Read a search space from a recipe, and say what is wrong with its ranges, choices and conditions."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...configs.values import LARGEST, did_you_mean, nearest
from ...errors import why_no_number
from .space import Parameter, Space, condition_of, inside_of, label_of

OF_RANGE = ("low", "high", "log", "step", "type")
OF_DOMAIN = (*OF_RANGE, "choices", "when")
"""Keys of a range or choice."""
NEEDED = {"low", "high", "choices"}
"""Keys of which a range or choice has at least one, which tells it from nested keys."""
OTHER_NAMES = {
    **dict.fromkeys(("min", "minimum", "lower", "start", "from"), "low"),
    **dict.fromkeys(("max", "maximum", "upper", "stop", "end", "to"), "high"),
    **dict.fromkeys(("values", "options", "categories", "grid"), "choices"),
    **dict.fromkeys(("log_scale", "logarithmic", "loguniform", "log_uniform"), "log"),
    **dict.fromkeys(("step_size", "q", "quantum"), "step"),
}
"""Name in other tools -> key of a range or choice."""
NOT_SEARCHED = ("run", "search", "launch")
"""Parts that say where and how a run is started, which a search decides itself."""


def read_space(given: Mapping[str, Any]) -> tuple[Space, list[str]]:
    """The space without its wrong parts, and the mistakes as texts ``space.KEY is wrong because ...; fix``."""
    found: list[Parameter] = []
    flaws: list[str] = []
    refused: set[str] = set()
    for key, domain in _flat(given, ""):
        cases = domain if _are_cases(domain) else [domain]
        for case in cases:
            parameter, wrong = _parameter(key, case, several=len(cases) > 1)
            flaws += [f"space.{key}{'' if text.startswith(('.', ' ')) else ' '}{text}" for text in wrong]
            found += [parameter] if parameter else []
            refused |= {key} if wrong else set()
    for key, flaw in list(_impossible(found, refused)):
        flaws.append(flaw)
        refused.add(key)
    ordered, circle = _ordered(_sound(found, refused))
    refused |= {parameter.key for parameter in circle}
    flaws += [_depends_on_itself(circle)] if circle else []
    return Space(tuple(ordered), frozenset(refused)), flaws


def _flat(given: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Keys with their domains; nested mappings give dotted keys."""
    for name, value in given.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value and not _is_domain(value):
            yield from _flat(value, f"{key}.")
        else:
            yield key, value


def _is_domain(value: Mapping[str, Any]) -> bool:
    """Whether a mapping is a range or choice, maybe with names misspelt or of another tool, and no nested keys."""
    if NEEDED & value.keys():
        return True
    meant = [inside for name, inside in value.items() if _meant(str(name)) in NEEDED]
    return bool(meant) and not any(isinstance(inside, Mapping) for inside in meant)


def _meant(name: str) -> str | None:
    """The key of a range or choice that a name is meant to be; None if it resembles none."""
    return name if name in OF_DOMAIN else OTHER_NAMES.get(name) or nearest(name, OF_DOMAIN, 0.75)


def _are_cases(domain: Any) -> bool:
    return (
        isinstance(domain, list) and bool(domain) and all(isinstance(one, Mapping) and "when" in one for one in domain)
    )


def _parameter(key: str, domain: Any, several: bool) -> tuple[Parameter | None, list[str]]:
    """A parameter, or mistakes in its domain as texts that follow ``space.KEY``."""
    if key.split(".")[0] in NOT_SEARCHED:
        return None, [f" is a key of {key.split('.')[0]}, which cannot be searched; leave it out"]
    if isinstance(domain, list):
        domain = {"choices": domain}
    if not isinstance(domain, Mapping) or not domain:
        return None, [f" is a single value ({domain!r}); write a range {{low: ..., high: ...}} or a list of choices"]
    wrong = [_unknown(str(name), value) for name, value in domain.items() if name not in OF_DOMAIN]
    when = domain.get("when") or {}
    if not isinstance(when, Mapping):
        return None, [*wrong, f".when is {when!r}; write {{KEY: value}} or {{KEY: [value, value]}}"]
    cases = {str(other): tuple(value) if isinstance(value, list) else (value,) for other, value in when.items()}
    case = ",".join(f"{other}={'|'.join(map(str, values))}" for other, values in cases.items())
    base = Parameter(f"{key}[{case}]" if several else key, key, when=cases)
    if "choices" in domain:
        return _choice(base, domain, wrong)
    return _range(base, domain, wrong)


def _unknown(name: str, value: Any) -> str:
    if name in OTHER_NAMES:
        return f".{name}={value!r} is not known; write {OTHER_NAMES[name]}"
    return f".{name}={value!r} is not known; {did_you_mean(name, OF_DOMAIN)}"


def _choice(base: Parameter, domain: Mapping[str, Any], wrong: list[str]) -> tuple[Parameter | None, list[str]]:
    choices = domain["choices"]
    wrong += [f".{name} has no effect with choices; leave it out" for name in OF_RANGE if name in domain]
    if choices == []:
        wrong.append(" has no choices: its list is empty; write [a, b]")
    elif not isinstance(choices, list):
        wrong.append(f".choices is {choices!r}, not a list of values; write [a, b]")
    elif len({label_of(choice) for choice in choices}) < len(choices):
        wrong.append(f" holds a choice twice ({choices!r}); leave one out")
    return (None, wrong) if wrong else (replace(base, choices=tuple(choices)), [])


def _range(base: Parameter, domain: Mapping[str, Any], wrong: list[str]) -> tuple[Parameter | None, list[str]]:
    low, high, step, log = (domain.get(name) for name in ("low", "high", "step", "log"))
    misspelt = {_meant(str(name)) for name in domain if name not in OF_DOMAIN}
    if "choices" in misspelt:
        return None, wrong
    for name in ("low", "high"):
        if name not in domain and name in misspelt:
            continue  # it is there under another name, which is refused already
        if name not in domain:
            wrong.append(f" has no {name}; write {{low: ..., high: ...}}")
        elif not _is_number(domain[name]):
            wrong.append(f".{name} is {domain[name]!r}, not a number; write a number")
        elif not abs(domain[name]) < LARGEST:  # NaN is in no order
            wrong.append(f".{name} {why_no_number(domain[name])}; write a number within 64 bits")
    if domain.get("type") not in (None, "int", "float"):
        wrong.append(f".type is {domain['type']!r}; write int or float")
    if log not in (None, True, False):
        wrong.append(f".log is {log!r}; write true or false")
    if step is not None and not (_is_number(step) and 0 < step < LARGEST):
        wrong.append(f".step is {str(step)[:40]}, which is not above 0 or too large; write a positive number")
    if wrong:
        return None, wrong
    assert low is not None and high is not None
    whole = domain["type"] == "int" if "type" in domain else all(isinstance(n, int) for n in (low, high, step or 1))
    if low > high:
        wrong.append(f".low={low} is above high={high}; exchange them")
    if log and low <= 0:
        wrong.append(f".low={low} is not above 0, which log needs; use a positive number, or leave log out")
    if log and step is not None and not (whole and step == 1):
        wrong.append(f".step={step} cannot be combined with log; leave one of them out")
    if whole and any(n != int(n) for n in (low, high, step or 1)):
        given = {"low": low, "high": high, "step": step or 1}
        broken = [f"{name}={number}" for name, number in given.items() if number != int(number)]
        are = "is" if len(broken) == 1 else "are"
        wrong.append(f".type is int, but {' and '.join(broken)} {are} not whole; write whole numbers")
    made = replace(base, low=low, high=high, log=bool(log), step=step, whole=whole, typed="type" in domain)
    return (None, wrong) if wrong else (made, [])


def _sound(found: Sequence[Parameter], refused: set[str]) -> list[Parameter]:
    """Parameters without those whose key, or a key of whose conditions, is refused; their keys are then refused too."""
    while spoilt := {each.key for each in found if each.key in refused or refused & each.when.keys()}:
        refused |= spoilt
        found = [each for each in found if each.key not in spoilt]
    return list(found)


def _ordered(waiting: list[Parameter]) -> tuple[list[Parameter], list[Parameter]]:
    """Parameters, each after those that its conditions name; and parameters that depend on each other in a cycle."""
    ordered: list[Parameter] = []
    while waiting:
        keys = {parameter.key for parameter in waiting}
        ready = [parameter for parameter in waiting if not keys & parameter.when.keys()]
        if not ready:
            break
        ordered += ready
        waiting = [parameter for parameter in waiting if parameter not in ready]
    return ordered, waiting


def _depends_on_itself(circle: Sequence[Parameter]) -> str:
    keys = " and ".join(sorted({parameter.key for parameter in circle}))
    return f"space.{circle[0].key}.when depends on itself ({keys}); drop one of them"


def _impossible(found: Sequence[Parameter], refused: Collection[str]) -> Iterator[tuple[str, str]]:
    """Keys that are given twice, or whose conditions cannot hold, each with what is wrong. Conditions that name a
    refused key are left out."""
    names = [parameter.name for parameter in found]
    for parameter in found:
        if names.count(parameter.name) > 1 and parameter is found[names.index(parameter.name)]:
            yield parameter.key, f"space.{parameter.key} is given twice for the same case; leave one out"
        for later in found[found.index(parameter) + 1 :]:
            if later.key == parameter.key and later.name != parameter.name and _overlap(parameter, later):
                why = f"has two cases that may hold at once ({condition_of(parameter)} and {condition_of(later)})"
                yield parameter.key, f"space.{parameter.key} {why}; make them differ"
        for other, values in parameter.when.items():
            if other in refused:
                continue
            those, when = [each for each in found if each.key == other], f"space.{parameter.key}.when"
            if not those:
                near = did_you_mean(other, sorted({each.key for each in found}))
                yield parameter.key, f"{when} names {other}, which is not searched; {near or 'search it too'}"
            for value in values:
                if any(each.count is None and each.holds(value) for each in those):
                    why = f"needs {other}={value!r}, but a range without steps hardly ever gives exactly this number"
                    yield parameter.key, f"{when} {why}; search {other} by choices or with a step"
                elif those and not any(each.holds(value) for each in those):
                    yield (
                        parameter.key,
                        f"{when} needs {other}={value!r}, a value that {other} never has; {inside_of(those)}",
                    )


def _overlap(one: Parameter, other: Parameter) -> bool:
    """Whether the conditions of two cases of a key can hold at once."""
    shared = one.when.keys() & other.when.keys()
    return all(set(map(label_of, one.when[key])) & set(map(label_of, other.when[key])) for key in shared)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
