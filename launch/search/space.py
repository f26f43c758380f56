"""The space of a hyperparameter search: which values each key of the recipe may take, and under which conditions.

``optimizer.lr: {low: 1e-5, high: 1e-2, log: true}`` is a range, ``plan: [ddp, zero3]`` a choice, of values or of a
group's files. With ``when: {optimizer: lion}`` a key is searched only if another one has this value, or one of a list;
a list of ranges with ``when`` gives a key one range for each case. Keys may be dotted or nested.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ...configs.values import did_you_mean

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

MOST_COUNTED = 10_000
"""Combinations up to which a space is counted."""
_ANY = object()
"""Value of a key on which nothing depends."""


@dataclass(frozen=True)
class Parameter:
    """One key with the values that it may take, in one case."""

    name: str
    """Name in the study: the key, with its case in brackets if it has several."""
    key: str
    low: float = 0
    high: float = 0
    log: bool = False
    step: float | None = None
    whole: bool = False
    """Whether the values are integers."""
    typed: bool = False
    """Whether the space gives the ``type`` of the values."""
    choices: tuple[Any, ...] | None = None
    when: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether the key is searched if other keys have these values."""
        return all(key in values and values[key] in allowed for key, allowed in self.when.items())

    def extremes(self) -> tuple[Any, ...]:
        """Both ends of a range, or all choices: if these fit a recipe's types, so does all between."""
        return self.choices if self.choices is not None else (self.low, self.high)

    @property
    def count(self) -> int | None:
        """How many values there are; None in a range of numbers without steps."""
        if self.choices is not None:
            return len(self.choices)
        step = self.step or (1 if self.whole else None)
        return None if step is None else int((self.high - self.low) / step + 1e-9) + 1

    def values(self) -> Iterator[Any]:
        """All values, of a key that has a count."""
        if self.choices is not None:
            yield from self.choices
        else:
            step = self.step or 1
            yield from (self.low + number * step for number in range(self.count or 0))

    def suggest(self, trial: BaseTrial) -> Any:
        if self.choices is not None:
            labels = [label_of(choice) for choice in self.choices]
            return self.choices[labels.index(trial.suggest_categorical(self.name, labels))]
        if self.whole:
            step = int(self.step or 1)
            return trial.suggest_int(self.name, int(self.low), int(self.high), step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def holds(self, value: Any) -> bool:
        if self.choices is not None:
            return value in self.choices
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return number and self.low <= value <= self.high and not (self.whole and value != int(value))

    def stored(self, value: Any) -> Any:
        """A value as the study keeps it."""
        return label_of(value) if self.choices is not None else value


@dataclass(frozen=True)
class Space:
    """Parameters, sorted so that each comes after those that its conditions name."""

    parameters: tuple[Parameter, ...]
    refused: frozenset[str] = frozenset()
    """Keys that were left out because their ranges or conditions are wrong."""

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parameter.key for parameter in self.parameters))

    @property
    def combinations(self) -> int | None:
        """How many different points there are; None if a range of numbers has no steps."""
        counts = [parameter.count for parameter in self.parameters]
        if any(count is None for count in counts):
            return None
        return self._points({}) if math.prod(filter(None, counts)) <= MOST_COUNTED else None

    def _points(self, values: dict[str, Any]) -> int:
        """Number of points with these values of the first keys; keys with conditions depend on those before them."""
        rest = [each for each in self.parameters if each.key not in values and each.active(values)]
        if not rest:
            return 1
        first, conditions = rest[0], {key for each in self.parameters for key in each.when}
        if first.key not in conditions:  # nothing depends on its value
            return (first.count or 0) * self._points({**values, first.key: _ANY})
        return sum(self._points({**values, first.key: value}) for value in first.values())

    def suggest(self, trial: BaseTrial) -> dict[str, Any]:
        """Values by key for a trial of optuna."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.key not in values and parameter.active(values):
                values[parameter.key] = parameter.suggest(trial)
        return values

    def stored(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Values by key as those of the study's parameters; keys whose case does not hold are left out."""
        found = {}
        for parameter in self.parameters:
            if parameter.key in point and parameter.active(point) and parameter.holds(point[parameter.key]):
                found.setdefault(parameter.name, parameter.stored(point[parameter.key]))
        return found

    def flaws_of(self, point: Mapping[str, Any]) -> Iterator[str]:
        """Mistakes in a point that the user gives."""
        for key, value in point.items():
            mine = [parameter for parameter in self.parameters if parameter.key == key]
            if key in self.refused:
                continue
            if not mine:
                fix = did_you_mean(str(key), self.keys) or "leave it out"
                yield f"{key} is not in the space; {fix}"
            elif not any(parameter.holds(value) for parameter in mine):
                yield f"{key} holds {value!r}, which is outside of the space; {inside_of(mine)}"
            elif not any(parameter.holds(value) and self._may_be_active(parameter, point) for parameter in mine):
                conditions = " or ".join(condition_of(parameter) for parameter in mine)
                yield f"{key} is searched only with {conditions}; leave it out, or give that too"

    def _may_be_active(self, parameter: Parameter, point: Mapping[str, Any]) -> bool:
        """Whether a parameter may be searched at a point; keys that the point does not have may take any value."""
        return all(key not in point or point[key] in allowed for key, allowed in parameter.when.items())

    def typed(self, raw: Mapping[str, Any]) -> Space:
        """The space with ranges of integers turned into ranges of numbers where the recipe's own value is a float, as
        in ``data.held_out: {low: 0, high: 1}``."""

        def fitted(parameter: Parameter) -> Parameter:
            own = value_at(raw, parameter.key)
            loose = parameter.whole and not parameter.typed and isinstance(own, float)
            return replace(parameter, whole=False, step=parameter.step) if loose else parameter

        return replace(self, parameters=tuple(map(fitted, self.parameters)))

    def as_json(self) -> dict[str, Any]:
        """The space as the study stores it."""
        return {each.name: json.loads(json.dumps(_domain(each))) for each in self.parameters}


def is_path(text: str) -> bool:
    """Whether a text may be the dotted path of a function."""
    return re.fullmatch(r"[\w.]+", text) is not None


def value_at(raw: Any, key: str) -> Any:
    """A value of nested data at a dotted key; None if there is none."""
    for part in key.split("."):
        raw = raw.get(part) if isinstance(raw, Mapping) else None
    return raw


def condition_of(parameter: Parameter) -> str:
    """The condition of a case in words."""
    parts = [f"{key}={'|'.join(map(str, values))}" for key, values in parameter.when.items()]
    return " and ".join(parts) or "any values"


def inside_of(parameters: Sequence[Parameter]) -> str:
    parts = [
        f"{each.low} to {each.high}" if each.choices is None else ", ".join(map(str, each.choices))
        for each in parameters
    ]
    return f"the space holds {' or '.join(parts)}"


def label_of(choice: Any) -> Any:
    """A choice as optuna keeps it: lists and mappings as JSON."""
    plain = choice is None or isinstance(choice, bool | int | float | str)
    return choice if plain else json.dumps(choice, sort_keys=True)


def _domain(parameter: Parameter) -> dict[str, Any]:
    when = {key: list(values) for key, values in parameter.when.items()}
    if parameter.choices is not None:
        return {"choices": list(parameter.choices), "when": when}
    names = ("low", "high", "log", "step", "whole")
    return {**{name: getattr(parameter, name) for name in names}, "when": when}
