"""The key that was meant by one that does not exist: a neighbour, a key elsewhere, or another tool's name for one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..errors import Problem
from .other_names import answer, find, value_fix
from .values import likeness, nearest

ELSEWHERE = 0.8
"""How alike a name at another place must be."""
REFUSALS = ("unknown key", "unknown argument of trireme.", "unknown argument of torch.")
"""How refusals begin that are answered here. Components of users may mean something else by the same name."""


def nearest_key(key: str, siblings: Iterable[str], path: str, known: Sequence[str]) -> str | None:
    """The dotted key that was meant by ``key`` at ``path``: a sibling, unless a key elsewhere is clearly nearer.

    Args:
        known: dotted paths of the whole schema.
    """
    sibling = nearest(key, siblings)
    own = likeness(key, sibling) if sibling else 0.0
    leaves = {dotted.rpartition(".")[2]: dotted for dotted in reversed(known)}
    leaf = nearest(key, leaves, ELSEWHERE)
    if leaf and likeness(key, leaf) > own + 0.1:
        return leaves[leaf]
    return f"{path}.{sibling}".lstrip(".") if sibling else None


def with_names_from_elsewhere(problems: Iterable[Problem], known: Sequence[str]) -> list[Problem]:
    """Refusals of unknown keys; what another tool calls so, or trireme at another place, is named.

    Args:
        known: dotted paths of the whole schema.
    """
    return [_answered(problem, known) for problem in problems]


def _answered(problem: Problem, known: Sequence[str]) -> Problem:
    if problem.why.startswith("expected"):
        return replace(problem, fix=value_fix(problem.field, problem.value) or problem.fix)
    if not problem.why.startswith(REFUSALS):
        return problem
    name = problem.field.rpartition(".")[2]
    other = find(name)
    if other is not None and other.ours.rpartition(".")[2] != name:
        return answer(problem.field, problem.value) or problem
    same = [other.ours] if other else [dotted for dotted in known if dotted.rpartition(".")[2] == name]
    if not same or same[0] == problem.field:
        return problem
    return replace(problem, fix=f"did you mean {same[0]}?")
