"""Compose a recipe through Hydra: turn its name and the overrides of a command line into plain data (nested dicts and
lists). ``show`` serves Hydra's own flags: it prints what they ask for, such as the composed recipe for ``--cfg job``.

Hydra merges the files (``run_hydra.py``). The modules around it check recipe files (``recipe_file.py``) and overrides
(``overrides.py``) before Hydra reads them, drop arguments of a replaced ``_target_`` (``replaced_targets.py``) and
reword Hydra's errors (``hydra_errors.py``). ``compose_sweep.py`` composes the jobs of a sweep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..errors import UserError
from .check_environment import check_environment
from .composed import Composed
from .given_recipe import GivenRecipe
from .replaced_targets import without


def compose(recipe: str, overrides: Sequence[str] = (), recipe_dirs: Sequence[str] = ()) -> Composed:
    """Compose a recipe.

    Args:
        recipe: a name such as ``pretrain/persimmon_stdlib``, or a path to a ``.yaml`` file.
        overrides: ``key=value``, ``group=option``, ``+new=value``, ``~key``.
        recipe_dirs: folders with recipes of the user's own, and groups under ``configs/`` in them.

    Raises:
        UserError: there is no such recipe, a file is not YAML, or the parts do not fit together.
    """
    check_environment()
    given = GivenRecipe(recipe, overrides, recipe_dirs)
    try:
        composed = given.compose(given.accepted)
        void = given.void(composed.raw)
        if void:  # composed again, so that interpolations see the change
            composed = given.compose([*given.accepted, *without(void, composed.raw)])
    except UserError as error:
        raise UserError(*given.problems, *error.problems) from error
    return replace(composed, problems=[*given.problems, *composed.problems], notes=given.notes_on(void))


def show(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str], flags: Sequence[str]) -> None:
    """Print the answer to a flag of Hydra: ``--cfg job``, ``--info defaults`` ..."""
    given = GivenRecipe(recipe, overrides, recipe_dirs)
    if given.problems:
        raise UserError(*given.problems)
    raw = given.compose(given.accepted).raw
    given.hydra(flags, [*given.accepted, *without(given.void(raw), raw)], lambda config: None)
