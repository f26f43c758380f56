"""Try a search's sampler and pruner on a study in memory, so that wrong ones are refused before the first trial."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import BaseSampler

from ...configs.build_parts import built
from ...errors import Problem, UserError
from .samplers import build_sampler, seeded
from .space import Space
from .study_store import quiet_optuna

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .search_config import SearchConfig

TRIALS = 2
"""Trials that are drawn: some samplers fail only once a trial has ended."""
KINDS: Mapping[str, type] = {"sampler": BaseSampler, "pruner": BasePruner}


def try_sampler(search: SearchConfig, objectives: int, space: Space | Callable[[Any], dict[str, Any]]) -> list[Problem]:
    """Problems of ``search.sampler`` and ``search.pruner``.

    Args:
        objectives: number of objectives; with several, nothing is pruned.
    """
    quiet_optuna()
    given = {"sampler": search.sampler, "pruner": search.pruner}
    made = {field: _built(field, component, search.seed) for field, component in given.items() if component}
    problems = [problem for _, found in made.values() for problem in found]
    if problems or not made:
        return problems
    pruner = made["pruner"][0] if "pruner" in made else NopPruner()
    try:
        _draw(build_sampler(search.sampler, search.seed, objectives), pruner, objectives, space, given)
    except UserError as error:
        return [problem for problem in error.problems if isinstance(problem, Problem)]
    return []


def _built(field: str, component: dict[str, Any], seed: int) -> tuple[Any, list[Problem]]:
    """A sampler or pruner, and the problems that keep it from being built."""
    path = f"search.{field}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna warns of what it calls experimental
        with _blamed(field, component):
            component = seeded(component, seed, 0) if field == "sampler" else component
        made, problems = built(component, path)
    if problems or isinstance(made, KINDS[field]):
        return made, [replace(each, fix=each.fix or "correct its arguments") for each in problems]
    fix = f"name one of optuna.{field}s, or a class of your own that is derived from optuna's {KINDS[field].__name__}"
    why = f"gives no {field} but an object of type {type(made).__name__}"
    return None, [Problem(f"{path}._target_", why, fix, component["_target_"])]


def _draw(
    sampler: BaseSampler,
    pruner: BasePruner,
    objectives: int,
    space: Space | Callable[[Any], dict[str, Any]],
    given: Mapping[str, dict[str, Any] | None],
) -> None:
    """Draw some trials, report a value of each and end it.

    Raises:
        UserError: the sampler or the pruner fails.
    """
    directions: list[Literal["minimize"]] = ["minimize"] * objectives
    study = optuna.create_study(sampler=sampler, pruner=pruner, directions=directions)
    for number in range(TRIALS):
        with _blamed("sampler", given["sampler"]):
            trial = study.ask()
            _ = space.suggest(trial) if isinstance(space, Space) else space(trial)
        if objectives == 1:
            with _blamed("pruner", given["pruner"]):
                trial.report(float(number), 1)
                trial.should_prune()
        with _blamed("sampler", given["sampler"]):
            study.tell(trial, [float(number)] * objectives)


@contextmanager
def _blamed(field: str, component: Mapping[str, Any] | None) -> Iterator[None]:
    """Context whose errors are a problem of the sampler or pruner.

    Raises:
        UserError: any error.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (Exception, SystemExit) as error:  # a class of the user's own may fail in any way
        lines = str(error).strip().splitlines()
        why = f"fails on this space: {type(error).__name__}{f': {lines[0]}' if lines else ''}"
        fix = f"correct its arguments, or choose another {field}: docs/search.md"
        target = component["_target_"] if component else None
        raise UserError(Problem(f"search.{field}", why, fix, target)) from None
