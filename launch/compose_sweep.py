"""Compose the recipes of a sweep (``--multirun``) through Hydra's sweepers, to run each as a job or to list them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import UserError
from .compose import compose
from .composed import Composed, sweep_root
from .given_recipe import GivenRecipe
from .overrides import key_of, without_choices
from .replaced_targets import left_over, without


def sweep(
    recipe: str,
    overrides: Sequence[str],
    recipe_dirs: Sequence[str],
    check: Callable[[list[Composed]], Any],
    job: Callable[[Composed], Any],
    check_folder: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Call ``job`` for every combination of the overrides' choices (``optimizer.lr=1e-3,1e-4``): ``--multirun``.

    The run folder of each job ends in the job's own choices. The first failure ends the sweep. The value that ``job``
    returns is the objective for a sweeper that chooses by results.

    Args:
        check: called with all jobs before the first one, to refuse the sweep as a whole. It is only called for Hydra's
            own sweeper, since others choose a job by the results of earlier ones.
        check_folder: called before ``check`` with the folder that holds the jobs' run folders.
    """
    given = _for_sweep(recipe, overrides, recipe_dirs)
    folder = sweep_folder(given.path, overrides, recipe_dirs)
    check_folder(Path(folder))
    failures: list[BaseException] = []

    def guarded(config: Any) -> Any:
        if failures:
            return None
        try:
            return job(_of_sweep(config, given))
        except BaseException as error:  # raised again below; Hydra would print a message of its own
            failures.append(error)

    if not chooses_by_results(overrides):
        check(sweep_jobs(recipe, overrides, recipe_dirs))
    given.hydra(["--multirun"], given.accepted, guarded, folder)
    if failures:
        raise failures[0]


def sweep_jobs(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> list[Composed]:
    """Every combination of the overrides' choices, none of them started."""
    given = _for_sweep(recipe, overrides, recipe_dirs)
    jobs: list[Composed] = []
    with TemporaryDirectory() as folder:
        given.hydra(["--multirun"], given.accepted, lambda config: jobs.append(_of_sweep(config, given)), folder)
    return jobs


def _for_sweep(recipe: str, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> GivenRecipe:
    given = GivenRecipe(recipe, overrides, recipe_dirs, sweeps=True)
    if given.problems:
        raise UserError(*given.problems)
    # Composed and cached now, since Hydra cannot compose a second recipe inside a job.
    _ = given.as_written, given.chosen
    return given


def _of_sweep(config: Any, given: GivenRecipe) -> Composed:
    """The composed recipe of one job, without keys that its choices make void."""
    composed = given.composed(config, given.accepted)
    void = left_over(composed.raw, given.as_written[0], given.chosen, composed.overrides, given.own)
    texts = without(void, composed.raw)
    for key in void:
        *parents, last = key.split(".")
        node = composed.raw
        for parent in parents:
            node = node[parent]
        del node[last]
    return replace(composed, overrides=[*composed.overrides, *texts], notes=given.notes_on(void))


def sweep_folder(path: Path, overrides: Sequence[str], recipe_dirs: Sequence[str]) -> str:
    """The folder that holds the run folders of a sweep. Hydra needs it before it composes a job."""
    fixed = without_choices(overrides)
    try:
        run_dir = compose(str(path), fixed, recipe_dirs).raw["run"]["dir"]
    except UserError:  # the recipe is only complete with the choices of the sweep
        run_dir = None
    known = run_dir not in (None, "", "???")
    return sweep_root(run_dir if known else f"runs/{path.stem}", set(map(key_of, fixed)))


def chooses_by_results(overrides: Sequence[str]) -> bool:
    """Whether the overrides name a sweeper other than Hydra's own: it chooses jobs by the results of earlier ones."""
    return any(text.lstrip("+").startswith("hydra/sweeper=") for text in overrides)
