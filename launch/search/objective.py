"""The objective of a search: the metrics by which trials are judged, or the user's function of the metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ...errors import Problem, UserError
from ...trainer.callbacks.metrics_file import FILE_NAME, read_metrics

if TYPE_CHECKING:
    from ...configs.schema import RecipeConfig
    from .search_config import SearchConfig

Function = Callable[[dict[str, Any]], Any]


@dataclass(frozen=True)
class Objective:
    """Names and directions of the values that a trial is judged by."""

    modes: Mapping[str, str]
    """``min`` or ``max`` by name."""
    take: str = "last"
    function: Function | None = None
    """Function of the last metrics; None takes the metrics of these names themselves."""

    @property
    def names(self) -> list[str]:
        return list(self.modes)

    @property
    def directions(self) -> list[Literal["minimize", "maximize"]]:
        return ["minimize" if mode == "min" else "maximize" for mode in self.modes.values()]

    @property
    def single(self) -> bool:
        return len(self.modes) == 1

    @property
    def watched(self) -> list[str]:
        """Metrics whose lines a trial reports while it runs; empty for every evaluation."""
        return [] if self.function else self.names

    def of_lines(self, lines: Iterable[Mapping[str, Any]]) -> list[float]:
        """Values of the objectives from a run's lines of metrics.

        Raises:
            KeyError: a metric that no line has.
            UserError: the user's own function fails, or returns something else.
        """
        lines = list(lines)
        if self.function is None:
            return [self._taken(name, [float(line[name]) for line in lines if name in line]) for name in self.names]
        last: dict[str, Any] = {}
        for line in lines:
            last |= line
        return self._called(last)

    def better(self, one: float, other: float) -> bool:
        """Whether one value of a single objective is better than another."""
        return one < other if next(iter(self.modes.values())) == "min" else one > other

    def _taken(self, name: str, values: Sequence[float]) -> float:
        if not values:
            raise KeyError(name)
        if self.take == "last":
            return values[-1]
        finite = [value for value in values if not math.isnan(value)] or [math.nan]
        return min(finite) if self.modes[name] == "min" else max(finite)

    def _called(self, metrics: dict[str, Any]) -> list[float]:
        assert self.function is not None
        shown = name_of(self.function)
        try:
            result = self.function(metrics)
        except (Exception, SystemExit) as error:  # the user's own code may fail in any way
            why, fix = (
                f"raised {type(error).__name__}: {error}",
                f"it is called with these metrics: {', '.join(metrics)}",
            )
            raise UserError(Problem("search.function", why, fix, shown)) from error
        try:
            found: list[Any]
            if isinstance(result, Mapping):
                found = [result[name] for name in self.names]
            else:
                several = isinstance(result, Sequence) and not isinstance(result, str)
                found = list(result) if several else [result]
            values = [] if any(isinstance(value, bool) for value in found) else [float(value) for value in found]
        except (KeyError, TypeError, ValueError):
            values = []
        if len(values) != len(self.modes):
            names = ", ".join(self.names)
            fix = f"return a number for each of these, or a mapping by name: {names}"
            raise UserError(Problem("search.function", f"returned {result!r}", fix, shown))
        return values


def read_objective(recipe: RecipeConfig, search: SearchConfig, function: Function | None) -> Objective:
    """The objective of a recipe's search; ``checkpoint.metric`` if it names none. ``function`` is the one that
    ``search.function`` names."""
    given: dict[str, str] = dict(search.objectives) or {recipe.checkpoint.metric: recipe.checkpoint.mode}
    return Objective(given, search.take, function)


def function_at(path: str, field: str = "search.function") -> Callable[..., Any]:
    """The function at a dotted path.

    Raises:
        UserError: there is none.
    """
    from ...trainer.component import locate

    try:
        found = locate(path)
    except (Exception, SystemExit) as error:  # the user's own module may fail in any way
        why = f"cannot be imported: {type(error).__name__}: {error}"
        raise UserError(Problem(field, why, "write package.module.function", path)) from None
    if not callable(found):
        raise UserError(
            Problem(field, f"is of type {type(found).__name__}, not a function", "write package.module.function", path)
        )
    return found


def name_of(function: Callable[..., Any]) -> str:
    """The dotted path of a function, or of the class of a callable object."""
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__name__)}"


def metrics_of(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of a run's metrics; empty if it has none."""
    file = run_dir / FILE_NAME
    return read_metrics(file) if file.exists() else []
