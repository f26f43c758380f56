"""Check a search space before the first trial: recipes with its extreme values must compose and be valid. If the space
is a function of the user's own, recipes with the values of a few random trials are checked instead.

Each end of a range and each choice of a space in YAML is in at least one of these recipes. Contradictions between
several values are not checked here: the trial that has them reports them, since most of the space may be valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from ...errors import Problem, UserError
from ..compose import compose
from .space import Space
from .space_function import call_space
from .study_command import StudyCommand

TRIED = 5
"""Points at which a function of the user's own is called."""


def check_space(command: StudyCommand, space: Space | Callable[[Any], dict[str, Any]]) -> list[Problem]:
    """Problems of keys and values, each once, with those of the recipe itself.

    Raises:
        UserError: the function that gives the space fails.
    """
    if isinstance(space, Space):
        points, field = list(edges(space)), "search.space."
    else:
        points, field = list(_drawn(space)), ""
    found: dict[str, Problem | str] = {}
    for values in points:
        for problem in _problems(command, values):
            if isinstance(problem, Problem):
                inside = _within(problem.field, values)
                fix = f"{problem.fix}{_with_condition(problem.field, values) if field and inside else ''}"
                problem = replace(problem, field=f"{field if inside else ''}{problem.field}", fix=fix)
            # A function gives other values at each call, and each would show the same problem; so does each value of
            # an unknown key, beside each choice of its group.
            once: Any = problem
            if isinstance(problem, Problem) and problem.why.startswith("unknown"):
                once = (problem.field, "unknown")
            elif isinstance(problem, Problem) and not field:
                once = (problem.field, problem.why)
            found.setdefault(str(once), problem)
    return list(found.values())  # type: ignore[return-value]


def edges(space: Space) -> Iterator[dict[str, Any]]:
    """Points of a space among which every end of a range and every choice occurs."""
    waiting = [(parameter.name, value) for parameter in space.parameters for value in parameter.extremes()]
    waiting = [each for number, each in enumerate(waiting) if each not in waiting[:number]]
    while waiting:
        name, value = waiting[0]
        wanted = {name: value, **_conditions(space, name)}
        point: dict[str, Any] = {}
        for parameter in space.parameters:
            if parameter.key in point or not parameter.active(point):
                continue
            own = [value for other, value in waiting if other == parameter.name]
            chosen = wanted.get(parameter.name, own[0] if own else parameter.extremes()[0])
            point[parameter.key] = chosen
            waiting = [each for each in waiting if each != (parameter.name, chosen)]
        waiting = [each for each in waiting if each != (name, value)]
        yield point


def _conditions(space: Space, name: str) -> dict[str, Any]:
    """Values of other parameters, by name, under which a parameter is searched."""
    found: dict[str, Any] = {}
    parameter = next(each for each in space.parameters if each.name == name)
    for key, allowed in parameter.when.items():
        other = next(each for each in space.parameters if each.key == key and any(map(each.holds, allowed)))
        found[other.name] = next(value for value in allowed if other.holds(value))
        found = {**_conditions(space, other.name), **found}
    return found


def _drawn(function: Callable[[Any], dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Points that the user's own function gives for random trials."""
    from .samplers import random_trials
    from .study_store import quiet_optuna

    quiet_optuna()
    for trial in random_trials(TRIED):
        yield call_space(function, trial)


def _problems(command: StudyCommand, values: Mapping[str, Any]) -> list[Problem | str]:
    """Problems of types and keys at one point."""
    from ...configs.check_parts import check_built
    from ...configs.schema import PROVIDED, RecipeConfig
    from ...configs.suggest import with_names_from_elsewhere
    from ...configs.validate import read_parts, schema_paths

    try:
        composed = compose(command.recipe, command.overrides_of(values), command.recipe_dirs)
    except UserError as error:
        return list(error.problems)
    composed.raw["search"] = None
    parts, problems = read_parts(composed.raw, RecipeConfig, PROVIDED)
    refused = check_built(parts, {problem.field for problem in problems})
    problems += [problem for problem in refused if _within(problem.field, values)]
    return [*composed.problems, *with_names_from_elsewhere(problems, list(schema_paths(RecipeConfig)))]


def _with_condition(field: str, values: Mapping[str, Any]) -> str:
    """A further fix for a key of a group whose file is searched too: search the key only where the file has it."""
    group = field.partition(".")[0]
    return f"; or search it only where it fits: when: {{{group}: NAME}}" if group in values and group != field else ""


def _within(field: str, values: Mapping[str, Any]) -> bool:
    return any(f"{field}.".startswith(f"{key}.") or f"{key}.".startswith(f"{field}.") for key in values)
