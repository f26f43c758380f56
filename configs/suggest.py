"""Suggest fixes for unknown keys and values in a recipe: a similar name, or trireme's name for another tool's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from ..errors import Problem
from .names_of_other_tools import answer, find, value_fix
from .values import likeness, nearest

ELSEWHERE = 0.8
"""Likeness from which a key elsewhere in the schema is suggested."""
REFUSALS = ("unknown key", "unknown argument of trireme.", "unknown argument of torch.")
"""Beginnings of problems that get a suggestion. Users' components are left out, since a name may differ in meaning."""


OWN_SCHEDULE = "scheduler._target_"
"""An unknown key with a fix of its own: the component is ``scheduler.factor``, not ``scheduler``."""


def nearest_key(key: str, siblings: Iterable[str], path: str, known: Sequence[str]) -> str | None:
    """The dotted key nearest to ``key`` at ``path``: a sibling, unless a key elsewhere is clearly nearer.

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
    """The same problems, with better fixes for misplaced keys, and for keys and values of other tools.

    Args:
        known: dotted paths of the whole schema.
    """
    return [_with_better_fix(problem, known) for problem in problems]


def _with_better_fix(problem: Problem, known: Sequence[str]) -> Problem:
    if problem.why.startswith("expected"):
        return replace(problem, fix=value_fix(problem.field, problem.value) or problem.fix)
    if not problem.why.startswith(REFUSALS):
        return problem
    if problem.field == OWN_SCHEDULE:
        return replace(problem, fix=f"write scheduler=own scheduler.factor._target_={problem.value}")
    name = problem.field.rpartition(".")[2]
    other = find(name)
    if other is not None and other.ours.rpartition(".")[2] != name:
        return answer(problem.field, problem.value) or problem
    same = [other.ours] if other else [dotted for dotted in known if dotted.rpartition(".")[2] == name]
    if not same or same[0] == problem.field:
        return problem
    beside = f"did you mean {problem.field.removesuffix(name)}"
    sibling = problem.fix.removeprefix(beside).removesuffix("?") if problem.fix.startswith(beside) else ""
    if likeness(name, sibling) >= ELSEWHERE:  # a letter away is as likely as the same name in another part
        return replace(problem, fix=f"{beside}{sibling}, or {same[0]}?")
    return replace(problem, fix=f"did you mean {same[0]}?")
