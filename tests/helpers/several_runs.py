"""Train several runs one after the other on the same ranks, which costs less than new ranks for each run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from helpers.kept_ranks import kept_ranks
from helpers.recipes import TINY, composed_of, typed, with_few_files
from trireme.parallel.mesh import build_mesh
from trireme.trainer.build import build
from trireme.trainer.collective import on_main
from trireme.trainer.run_folder import open_run_folder

if TYPE_CHECKING:
    from trireme.launch.composed import Composed

Job = tuple[Path, Path, list[str]]
"""(file of the recipe, run folder, overrides)"""


def train_all_on_ranks(
    world_size: int, jobs: Sequence[Job], timeout: float = 120.0, start: Callable[..., list] = kept_ranks
) -> None:
    """``train_all`` on several ranks, which get composed recipes. ``start=run_ranks`` forks new ranks, which see the
    patches of a test."""
    start(_train, world_size, [_composed(job) for job in jobs], timeout=timeout)


def train_all(jobs: Sequence[Job]) -> None:
    """Train or resume each run, as ``train`` does. All runs have the plan of the first one."""
    _train([_composed(job) for job in jobs])


def _composed(job: Job) -> tuple[Path, Composed]:
    file, run_dir, overrides = job
    return run_dir, composed_of(file, run_dir, *(with_few_files(overrides) if file == TINY else overrides))


def _train(jobs: Sequence[tuple[Path, Composed]]) -> None:
    mesh = None
    for run_dir, composed in jobs:
        recipe = typed(composed)
        mesh = mesh or build_mesh(recipe.plan)
        on_main(mesh, partial(open_run_folder, run_dir, fresh=False))
        trainer = build(recipe, mesh, "auto")
        trainer.fit()
        for callback in trainer.callbacks.values():
            callback.close()
    if mesh:
        mesh.close()
