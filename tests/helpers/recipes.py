"""Typed recipes for tests, composed as the command does it from ``tests/recipes/tiny.yaml``."""

from __future__ import annotations

import copy
import functools
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trireme.configs.schema import read_recipe
from trireme.launch.compose import compose

if TYPE_CHECKING:
    from trireme.configs.schema import RecipeConfig
    from trireme.launch.composed import Composed

TINY = Path(__file__).parents[1] / "recipes" / "tiny.yaml"
STDLIB = Path(sysconfig.get_paths()["stdlib"])
FEW_FILES = [str(STDLIB / name) for name in ("json", "email")]


def composed_of(file: Path, run_dir: Path, *overrides: str) -> Composed:
    """The recipe in ``file`` as plain data. Files of the tests do not change, so what they compose to is kept: ranks
    that are forked afterwards need not compose it again, which takes longer than a step of theirs."""
    given = (str(file), (f"run.dir={run_dir}", *overrides))
    if file.parent != TINY.parent:
        return compose(*given)
    kept = _kept(*given)
    return replace(kept, raw=copy.deepcopy(kept.raw))


@functools.lru_cache(maxsize=64)
def _kept(file: str, overrides: tuple[str, ...]) -> Composed:
    return compose(file, overrides)


def recipe_of(file: Path, run_dir: Path, *overrides: str) -> RecipeConfig:
    """The recipe in ``file``, in ``run_dir`` with command-line overrides."""
    composed = composed_of(file, run_dir, *overrides)
    recipe, problems = read_recipe(composed.raw, lambda plan: int(os.environ.get("WORLD_SIZE", "1")))
    assert recipe is not None, [*composed.problems, *problems]
    return recipe


def tiny_recipe(run_dir: Path, *overrides: str) -> RecipeConfig:
    """The tiny recipe in ``run_dir`` with command-line overrides."""
    return recipe_of(TINY, run_dir, *with_few_files(overrides))


def with_few_files(overrides: Sequence[str]) -> list[str]:
    """Overrides of the tiny recipe, with few files to read unless they choose other data."""
    own_data = any(override.startswith("data=") for override in overrides)
    roots = [] if own_data else ["data.source.roots=[" + ",".join(FEW_FILES) + "]"]
    return [*roots, *overrides]
