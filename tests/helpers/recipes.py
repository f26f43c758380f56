"""Typed recipes for tests, composed as the command does it from ``tests/recipes/tiny.yaml``."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

from trireme.configs.schema import read_recipe
from trireme.launch.compose import compose

if TYPE_CHECKING:
    from trireme.configs.schema import RecipeConfig

TINY = Path(__file__).parents[1] / "recipes" / "tiny.yaml"
STDLIB = Path(sysconfig.get_paths()["stdlib"])
FEW_FILES = [str(STDLIB / name) for name in ("json", "email")]


def recipe_of(file: Path, run_dir: Path, *overrides: str) -> RecipeConfig:
    """The recipe in ``file``, in ``run_dir`` with command-line overrides."""
    composed = compose(str(file), [f"run.dir={run_dir}", *overrides])
    recipe, problems = read_recipe(composed.raw, lambda plan: int(os.environ.get("WORLD_SIZE", "1")))
    assert recipe is not None, [*composed.problems, *problems]
    return recipe


def tiny_recipe(run_dir: Path, *overrides: str) -> RecipeConfig:
    """The tiny recipe in ``run_dir`` with command-line overrides."""
    own_data = any(override.startswith("data=") for override in overrides)
    roots = [] if own_data else ["data.source.roots=[" + ",".join(FEW_FILES) + "]"]
    return recipe_of(TINY, run_dir, *roots, *overrides)
