"""Read and check a hyperparameter search before its first trial: recipe, search space, objectives, earlier results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...configs.validate import problem_of
from ...errors import Problem, UserError, gathered_in
from ...trainer.checkpoint.layout import RECIPE
from ...trainer.run_folder import changed_keys, saved_recipe
from ..compose import compose
from ..overrides import key_of
from ..planning import planned
from ..train import checked
from .check_space import check_space
from .engines.engine import build_engine, engine_class
from .objective import function_at, read_objective
from .prepared import Prepared
from .read_space import read_space
from .space import Space, is_path, value_at
from .storages import JOURNAL
from .study_command import recalled
from .study_store import LOCKS, without_study

if TYPE_CHECKING:
    from ...configs.schema import RecipeConfig

LENGTH = ("max_steps", "epochs", "stop_at", "eval_samples")
"""Keys of ``trainer`` that a resumed run may change, but not a study: its trials must be comparable."""


def prepare(
    recipe: str,
    overrides: Sequence[str],
    recipe_dirs: Sequence[str],
    nproc: int | None,
    space: Mapping[str, Any] | Callable[[Any], dict[str, Any]] | None = None,
    function: Callable[[dict[str, Any]], Any] | None = None,
    fresh: bool = False,
) -> Prepared:
    """Check a search.

    Args:
        recipe: name or file of a recipe, or the folder of a study.
        space, function: those of a notebook, in the place of the recipe's.
        fresh: an earlier study will be moved aside, so it need not fit.

    Raises:
        UserError: all that is wrong, before anything is written.
    """
    command = recalled(recipe, overrides, recipe_dirs, nproc)
    composed = compose(command.recipe, command.overrides, command.recipe_dirs)
    typed, ranks, problems = None, 0, list[Problem | str]()
    with gathered_in(problems):
        typed, ranks = checked(planned(composed, command.nproc, show=False), command.nproc)
    given = composed.raw.get("search")
    if given is None:
        raise UserError(*problems, _no_search(command.recipe))
    given = given if isinstance(given, dict) else {}
    searched, found = _space(given.get("space") if space is None else space, composed.raw)
    exact = [each.field for each in found if isinstance(each, Problem)]
    problems = [each for each in problems if not (isinstance(each, Problem) and _names_a_part(each.field, exact))]
    told = {each.field for each in problems if isinstance(each, Problem)}
    problems += [each for each in found if not isinstance(each, Problem) or each.field not in told]
    with gathered_in(problems):
        problems += check_space(command, searched) if searched is not None else []
    with gathered_in(problems):
        if function is None and given.get("function"):
            function = function_at(given["function"])
    if typed is None or typed.search is None or searched is None or problems:
        raise UserError(*{str(problem): problem for problem in problems}.values())
    folder, name = _folder(typed, command.overrides)
    prepared = Prepared(
        replace(typed, run=replace(typed.run, dir=str(folder))),
        replace(command, recipe=str(composed.recipe.resolve())),
        composed.raw,
        ranks,
        folder,
        name,
        searched,
        read_objective(typed, typed.search, function),
    )
    others = build_engine(prepared.search.engine).problems(prepared)
    others += _optuna_problems(prepared)
    if problems := [*_given_twice(prepared), *_old_study(prepared, fresh), *others]:
        raise UserError(*problems)
    return prepared


def _names_a_part(field: str, exact: Sequence[str]) -> bool:
    """Whether a field of the space is named more exactly by another problem: its ``low``, say."""
    return field.startswith("search.space.") and any(each.startswith(f"{field}.") for each in exact)


def _no_search(recipe: str) -> Problem:
    fix, why = "choose one: search=optuna, and write search.space", "the recipe says nothing about a search"
    if Path(recipe).expanduser().is_dir():
        fix, why = f"{fix}; or name the folder of a study", f"{why}: its folder is that of a run, not of a study"
    return Problem("search", why, fix)


def _space(
    given: Any, raw: Mapping[str, Any]
) -> tuple[Space | Callable[[Any], dict[str, Any]] | None, list[Problem | str]]:
    """The space without its wrong parts, and the problems of these parts."""
    if callable(given):
        return given, []  # type: ignore[return-value]
    if isinstance(given, str) and is_path(given):
        problems: list[Problem | str] = []
        with gathered_in(problems):
            return function_at(given, "search.space"), []
        return None, problems
    if isinstance(given, str):  # such as an unquoted {optimizer.lr:{low:...}}, as the shell has changed it, or JSON
        fix = "quote it for the shell: 'search.space={optimizer.lr:{low:1e-5,high:1e-2,log:true}}'"
        why = "is a text, and a mapping of ranges is needed, or the path of a function"
        return None, [Problem("search.space", why, fix, given)]
    if not isinstance(given or {}, Mapping):  # the check of types reports it
        return None, []
    space, flaws = read_space(given or {})
    if not space.parameters and not flaws:
        fix = "write its ranges: search.space={optimizer.lr: {low: 1e-5, high: 1e-2, log: true}}"
        return None, [Problem("search.space", "is empty, so there is nothing to search", fix)]
    return space.typed(raw), [problem_of(flaw, "search", {"space": given}) for flaw in flaws]


def _optuna_problems(prepared: Prepared) -> list[Problem]:
    """Problems of the sampler and the pruner, if optuna chooses the trials."""
    if not engine_class(prepared.search.engine).OF_OPTUNA:
        return []
    from .try_sampler import try_sampler  # imported here, since optuna takes a second

    return try_sampler(prepared.search, len(prepared.objective.modes), prepared.space)


def _folder(recipe: RecipeConfig, overrides: Sequence[str]) -> tuple[Path, str]:
    """The folder of the study and its name: the one that the command line names, or one beside the recipe's run
    folder."""
    assert recipe.search is not None
    run_dir, name = Path(recipe.run.dir), recipe.search.study
    beside = run_dir.parent / (name or f"{run_dir.name}_search")
    folder = run_dir if "run.dir" in map(key_of, overrides) else beside
    return folder, name or folder.name


def _given_twice(prepared: Prepared) -> list[Problem]:
    """Problems of keys that are in the search space and also given on the command line."""
    if not isinstance(prepared.space, Space):
        return []
    given = {key_of(text): text.partition("=")[2] for text in prepared.command.of_trials}
    why = "is searched, and also given on the command line"
    return [Problem(key, why, "leave one of them out", given[key]) for key in prepared.space.keys if key in given]


def _old_study(prepared: Prepared, fresh: bool) -> list[Problem]:
    """Problems of a folder that holds a run, or a study of another recipe."""
    folder = prepared.folder
    if (folder / "checkpoints").exists() or (folder / "metrics.jsonl").exists():
        why = "holds a run, and the trials would lie in it"
        return [Problem("run.dir", why, "name another folder: run.dir=runs/my_study", str(folder))]
    if fresh:
        return []
    if prepared.search.storage is None and not (folder / JOURNAL).is_file() and (lost := without_study(folder)):
        return [lost]
    if not (folder / RECIPE).is_file() or not (folder / LOCKS).is_dir():
        return []
    before = saved_recipe(folder)
    changed = changed_keys(prepared.recipe, folder)
    for name in LENGTH:
        if value_at(before, f"trainer.{name}") != getattr(prepared.recipe.trainer, name):
            changed.append(f"trainer.{name}")
    if not changed:
        return []
    shown = ", ".join(changed[:6]) + (f" and {len(changed) - 6} more" if len(changed) > 6 else "")
    fix = "choose another run.dir or search.study, or start over with --fresh (the old folder is kept)"
    return [Problem("run.dir", f"holds a study of another recipe (changed: {shown})", fix, str(folder))]
