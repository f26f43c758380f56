"""Several runs one after the other on the same ranks, which costs less than new ranks for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from helpers.ranks import run_ranks
from helpers.recipes import TINY, composed_of, recipe_of, with_few_files
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.collective import on_main
from trireme.trainer.run_folder import open_run_folder

Job = tuple[Path, Path, list[str]]
"""(file of the recipe, run folder, overrides)"""


def train_all_on_ranks(world_size: int, jobs: Sequence[Job], timeout: float = 120.0) -> None:
    """``train_all`` on new ranks, which inherit the composed recipes."""
    for file, run_dir, overrides in jobs:
        composed_of(file, run_dir, *_given(file, overrides))
    run_ranks(train_all, world_size, jobs, timeout=timeout)


def _given(file: Path, overrides: Sequence[str]) -> Sequence[str]:
    return with_few_files(overrides) if file == TINY else overrides


def train_all(jobs: Sequence[Job]) -> None:
    """Train or go on with each, as ``train`` does. All have the plan of the first."""
    mesh = None
    for file, run_dir, overrides in jobs:
        recipe = recipe_of(file, run_dir, *_given(file, overrides))
        mesh = mesh or build_mesh(recipe.plan)
        on_main(mesh, partial(open_run_folder, run_dir, fresh=False))
        trainer = build(recipe, mesh, "auto")
        trainer.fit()
        for callback in trainer.callbacks.values():
            callback.close()
    if mesh:
        mesh.close()
