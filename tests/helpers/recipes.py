"""Compose recipes for tests from ``tests/recipes/tiny.yaml`` or another file, in the same way as the ``trireme``
command.
"""

from __future__ import annotations

import hashlib
import json
import os
import sysconfig
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from filelock import FileLock
from trireme.configs.schema import read_recipe
from trireme.launch.compose import compose
from trireme.launch.composed import Composed

if TYPE_CHECKING:
    from trireme.configs.schema import RecipeConfig

TINY = Path(__file__).parents[1] / "recipes" / "tiny.yaml"
STDLIB = Path(sysconfig.get_paths()["stdlib"])
FEW_FILES = [str(STDLIB / name) for name in ("json", "email")]
KEPT = TemporaryDirectory(prefix="trireme_composed_")
"""Composed recipes of this process and of the ranks that it forks. It ends with the process, since another version may
compose a recipe to something else."""
ANY_RUN = "/any-run"
"""Placeholder for the run folder in kept recipes."""


def composed_of(file: Path, run_dir: Path, *overrides: str) -> Composed:
    """The recipe in ``file`` as plain data.

    Test recipes do not change, so composed ones are kept for any run folder. Composing takes longer than a step, and
    all ranks of a run and later tests would repeat it.
    """
    if file.parent != TINY.parent:
        return compose(str(file), (f"run.dir={run_dir}", *overrides))
    named = hashlib.sha256(repr((str(file), overrides, os.getcwd())).encode()).hexdigest()
    kept = Path(KEPT.name, f"{named}.json")
    with FileLock(f"{kept}.lock"):  # ranks ask for the same at the same time
        if not kept.exists():
            composed = compose(str(file), (f"run.dir={ANY_RUN}", *overrides))
            if composed.problems:
                return compose(str(file), (f"run.dir={run_dir}", *overrides))
            kept.write_text(json.dumps(asdict(composed), default=str))
    values = json.loads(kept.read_text().replace(ANY_RUN, json.dumps(str(run_dir))[1:-1]))
    return Composed(**{**values, "recipe": file})


def recipe_of(file: Path, run_dir: Path, *overrides: str) -> RecipeConfig:
    """The recipe in ``file``, in ``run_dir`` with command-line overrides."""
    return typed(composed_of(file, run_dir, *overrides))


def typed(composed: Composed) -> RecipeConfig:
    """The typed recipe of a composed one, which may come from another process."""
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
