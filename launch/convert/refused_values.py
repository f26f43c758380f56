"""Check a converted recipe, remove the values that the check refuses, and list them as not converted. Also find the
number of data ranks of the recipe's plan.

The check leaves out the model and the data, since their files may be elsewhere or not exist yet. A removed value is
listed by its name in the other tool.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...errors import Problem, UserError
from .recipe_draft import Draft

ELSEWHERE = (
    *("model.weights", "data.source.paths", "data.source.path", "data.source.split", "data.tokenizer.path"),
    *("data.eval_source", "data.chat.template", "plan.deepspeed", "run.dir"),
)
"""Keys that name files or repositories, which are not checked."""
MOST = 20
"""Rounds of the check; removing a value may show a problem of another one."""


def leave_refused(draft: Draft, given: Mapping[str, Any], ranks: int) -> None:
    """Move refused values from ``draft.values`` to ``draft.left``.

    Args:
        given: the arguments of the file by name.
        ranks: data ranks of the run.
    """
    for key, value in list(draft.values.items()):
        if above := next((each for each in draft.values if key.startswith(f"{each}.")), None):
            why = f"is a key inside of {above}, which has a value too"
            _leave(draft, key, Problem(key, why, f"leave {above} out, or write this key into its value"), given)
        elif _refers(value):
            why = "holds ${...}, which a recipe reads as a reference to another key"
            _leave(draft, key, Problem(key, why, "write the value itself into the recipe"), given)
    for _ in range(MOST):
        problems = _problems(draft, ranks)
        refused = {
            key: problem
            for problem in problems
            for key, value in draft.values.items()
            if _names(problem.field, key) and not _elsewhere(key, value)
        }
        for key, problem in refused.items():
            _leave(draft, key, problem, given)
        if not refused:
            return


def _leave(draft: Draft, key: str, problem: Problem, given: Mapping[str, Any]) -> None:
    value = draft.values.pop(key)
    why = f"{problem.field} {problem.why}" + (f"; {problem.fix}" if problem.fix else "")
    for name in draft.written_by.get(key) or [key]:
        if name not in draft.left:  # else an earlier problem says why
            draft.leave(name, given.get(name, value), why)
    draft.assumed.pop(key, None)


def _names(field: str, key: str) -> bool:
    return field == key or field.startswith(f"{key}.")


def _elsewhere(key: str, value: Any) -> bool:
    """Whether a value names files or repositories, which are not checked."""
    values = value if isinstance(value, list) and value else [value]
    return key in ELSEWHERE and all(isinstance(each, str) and each for each in values)


def data_ranks(draft: Draft, ranks: int) -> int:
    """Data ranks of the draft's plan among ``ranks`` processes; all, if the plan has problems."""
    from ...configs.validate import read
    from ...parallel.plan import Plan

    plan, _ = read(_raw(draft).get("plan"), Plan)
    try:
        return plan.degrees(ranks).data if plan is not None else ranks
    except ValueError:  # reported by the check of the recipe
        return ranks


def _problems(draft: Draft, ranks: int) -> list[Problem]:
    """Problems that the check finds in the draft, apart from its model and its data."""
    from ...configs.schema import read_recipe

    return read_recipe(_raw(draft), lambda plan: ranks)[1]


def _raw(draft: Draft) -> dict[str, Any]:
    """The draft as the plain data of a recipe."""
    raw = copy.deepcopy(_chosen(tuple((group, tuple(options)) for group, options in sorted(draft.choices.items()))))
    for key, value in draft.values.items():
        if not _elsewhere(key, value):
            _put(raw, key.split("."), copy.deepcopy(value))
    return raw


@cache
def _chosen(choices: tuple[tuple[str, tuple[str, ...]], ...]) -> dict[str, Any]:
    """The plain data of a recipe that makes these choices and says nothing else."""
    from ..compose import compose

    draft = Draft({group: list(options) for group, options in choices})
    with TemporaryDirectory() as folder:
        file = Path(folder) / "recipe.yaml"
        file.write_text(draft.text("arguments", ""), encoding="utf-8")
        try:
            return compose(str(file)).raw
        except UserError as error:  # said by the check of the recipe
            raise UserError(*error.problems) from None


def _put(raw: dict[str, Any], path: list[str], value: Any) -> None:
    """Set a value as a recipe does: mappings are merged."""
    *above, last = path
    for name in above:
        if not isinstance(raw.get(name), dict):
            raw[name] = {}
        raw = raw[name]
    if isinstance(value, dict) and isinstance(raw.get(last), dict):
        for name, each in value.items():
            _put(raw[last], [str(name)], each)
    else:
        raw[last] = value


def _refers(value: Any) -> bool:
    if isinstance(value, dict):
        return any(map(_refers, value.values()))
    if isinstance(value, list):
        return any(map(_refers, value))
    return isinstance(value, str) and "${" in value
