"""Give chosen parameters their own learning rate, weight decay or other optimizer options, which the recipe sets in its
section ``parameter_groups``.

A recipe lists patterns of names. It may also name a function, such as one for layer-wise decreasing learning rates,
which is called with the name and shape of every trained parameter that no pattern matches. Names and shapes are those
of the whole model, so every plan makes the same groups. All other parameters have the optimizer's own values, with no
weight decay for vectors.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import Problem, UserError, refuse, short
from .component import Component, instantiate, locate
from .component_errors import CONSTRUCTOR, component_errors

GROUPS = "parameter_groups"
FUNCTION = f"{GROUPS}.function"
RATE = "lr_ratio"
CONTRACT = "see docs/extending.md: it is called with a name and a shape, and gives options such as {'lr': 1e-4}, or {}"


@dataclass
class GroupRule:
    """Options of the parameters whose names match."""

    names: list[str]
    """Names of parameters, or patterns with ``*`` and ``?``. The first rule that matches a parameter counts for it."""
    lr: float | None = None
    """Their base learning rate, which the schedule scales; null takes ``optimizer.lr``."""
    lr_ratio: float | None = None
    """Their base learning rate as a multiple of ``optimizer.lr``; give this or ``lr``."""
    weight_decay: float | None = None
    """Their weight decay, also for vectors; null takes that of the optimizer, and 0 for vectors."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        if not self.names:
            yield "names=[] matches nothing; write patterns of names, such as '*.bias'"
        if self.lr is not None and self.lr_ratio is not None:
            yield f"lr={self.lr} and lr_ratio={self.lr_ratio} contradict; give one of them"
        if not self.options:
            yield "names have no options; give lr, lr_ratio or weight_decay, or leave the rule out"
        for name, value in self.options.items():
            if not (math.isfinite(value) and value >= 0):
                yield f"{name}={value} must be finite and not negative; write a number from 0"

    @property
    def options(self) -> dict[str, float]:
        """The options that are given, by name."""
        given = {"lr": self.lr, RATE: self.lr_ratio, "weight_decay": self.weight_decay}
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class ParameterGroups:
    """Parameters with optimizer options of their own."""

    rules: list[GroupRule] = field(default_factory=list)
    """Options by patterns of names: ``[{names: ["*.embed_tokens.*"], lr_ratio: 0.1, weight_decay: 0}]``."""
    function: Component | None = None
    """Your own class or function. It gives a function that is called with the name and shape of each parameter that no
    rule matches, and returns its options: ``lr`` or ``lr_ratio``, ``weight_decay``, and others of the optimizer."""

    def __post_init__(self) -> None:
        if not self.rules and self.function is None:
            raise ValueError("rules=[] and no function give no groups; write one of them, or leave this part out")


class OwnOptions:
    """The options of a parameter that the recipe gives, by its name and shape."""

    def __init__(self, config: ParameterGroups, optimizer: Component) -> None:
        """
        Raises:
            UserError: the function cannot be built, or what is built cannot be called.
        """
        self.rules, self.component, self.lr = config.rules, config.function, optimizer.get("lr")
        self.function: Any = None
        if self.component is not None:
            target = locate(self.component["_target_"])
            with component_errors(FUNCTION, target, CONSTRUCTOR):
                self.function = instantiate(self.component)
            if not callable(self.function):
                raise UserError(self._wrong(f"gives a {type(self.function).__name__}, which cannot be called"))

    def __call__(self, name: str, shape: Sequence[int]) -> dict[str, Any]:
        """Options of one parameter, for its group; empty if it has none of its own.

        Args:
            shape: that of the whole parameter, under any plan.

        Raises:
            UserError: there is no ``optimizer.lr`` for a ratio, or the function gives options that cannot be used.
        """
        rule = self.rule_of(name)
        options = rule.options if rule is not None else self._computed(name, shape)
        if RATE not in options:
            return options
        if not isinstance(self.lr, int | float):
            why = "is a multiple of optimizer.lr, which is not given"
            raise UserError(Problem(GROUPS, f"{RATE} {why}", "set optimizer.lr, or give lr"))
        return {key: value for key, value in options.items() if key != RATE} | {"lr": options[RATE] * self.lr}

    def named(self, parameters: Iterable[tuple[str, Any]]) -> set[str]:
        """Names of options besides ``lr`` that these parameters (or other things with a shape) have of their own."""
        return {option for name, one in parameters for option in self(name, one.shape)} - {"lr"}

    def rule_of(self, name: str) -> GroupRule | None:
        """The rule that counts for a parameter."""
        return next((rule for rule in self.rules if _matches(name, rule.names)), None)

    def _computed(self, name: str, shape: Sequence[int]) -> dict[str, Any]:
        if self.function is None:
            return {}
        with component_errors(FUNCTION, self.function, "a call"):
            found = self.function(name, tuple(shape) or (1,))  # ZeRO keeps a single number as a vector
        if not isinstance(found, Mapping) or not all(isinstance(key, str) for key in found):
            raise UserError(self._wrong(f"gives {short(found)} for {name}, not options by name"))
        for key in ("lr", RATE, "weight_decay"):
            value = found.get(key, 0)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise UserError(self._wrong(f"gives {key} = {short(value)} for {name}, not a finite number from 0 on"))
        if "params" in found or {"lr", RATE} <= found.keys():
            what = "params, which trireme sets" if "params" in found else f"both lr and {RATE}"
            raise UserError(self._wrong(f"gives {what} for {name}"))
        return dict(found)

    def refuse_unknown(self, options: Iterable[str], known: Iterable[str]) -> None:
        """Refuse an option that the optimizer does not have, since torch would keep it without a word.

        Raises:
            UserError: there is one.
        """
        known = sorted(known)
        if unknown := sorted(set(options) - set(known)):
            why = f"gives {', '.join(unknown)}, which is not an option of the optimizer; it has {', '.join(known)}"
            raise UserError(self._wrong(why))

    def problems(self, named: Iterable[tuple[str, Sequence[int]]]) -> list[Problem]:
        """Patterns of rules that match none of these trained parameters.

        Args:
            named: name and shape of every trained parameter of the whole model.
        """
        names = [name for name, _ in named]
        idle = [(number, each) for number, rule in enumerate(self.rules) for each in rule.names]
        fix = f"names of trained parameters are such as {', '.join(names[:3])}"
        return [
            Problem(f"{GROUPS}.rules.{number}.names", "matches no parameter that is trained", fix, pattern)
            for number, pattern in idle
            if not fnmatch.filter(names, pattern)
        ]

    def _wrong(self, why: str) -> Problem:
        return Problem(FUNCTION, why, CONTRACT, self.component["_target_"] if self.component else None)


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def trained_shapes(model: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Name and shape of every trained parameter of a whole model."""
    return [(name, tuple(one.shape)) for name, one in model.named_parameters() if one.requires_grad]
