"""Several runs one after the other on the same ranks, which costs less than new ranks for each."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from helpers.recipes import TINY, recipe_of, tiny_recipe
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.collective import on_main
from trireme.trainer.run_folder import open_run_folder

Job = tuple[Path, Path, list[str]]
"""(file of the recipe, run folder, overrides)"""


def train_all(jobs: Sequence[Job]) -> None:
    """Train or go on with each, as ``train`` does. All have the plan of the first."""
    mesh = None
    for file, run_dir, overrides in jobs:
        recipe = tiny_recipe(run_dir, *overrides) if file == TINY else recipe_of(file, run_dir, *overrides)
        mesh = mesh or build_mesh(recipe.plan)
        on_main(mesh, partial(open_run_folder, run_dir, fresh=False))
        trainer = build(recipe, mesh, "auto")
        trainer.fit()
        for callback in trainer.callbacks.values():
            callback.close()
    if mesh:
        mesh.close()
