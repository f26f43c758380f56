"""Start a search, show its results, or train the best recipe that it found, for ``trireme search`` and
``trireme.search``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from typing import Any

from ...errors import Problem, UserError
from ...trainer.run_folder import open_run_folder, write_recipe
from ..elastic import launched
from ..error_report import RanksFailed
from ..slurm.job_task import use_node_storage
from .check_search import prepare
from .engines.engine import build_engine, engine_class
from .file_locks import lock_file
from .prepared import Prepared
from .results import BEST, best_trials, show_results, write_results
from .run_search import Search, say
from .space import Space, value_at
from .storages import storage_errors
from .study_store import LOCKS, StudyStore
from .submit_workers import submit_workers
from .trial_starter import TrialStarter


def search(options: argparse.Namespace) -> None:
    """Run ``trireme search``: search to the end and show the results, or only show or train them.

    Raises:
        UserError: something the user can mend.
        LeftEarly: a signal came, and the same command goes on.
        RanksFailed: too many trials have failed.
    """
    if launched():
        raise UserError(
            Problem("trireme search", "starts its own processes", "run it without a launcher, with --nproc")
        )
    prepared = prepare(options.recipe, options.overrides, options.recipe_dir, options.nproc, fresh=options.fresh)
    if options.here and prepared.recipe.launch.kind != "slurm":
        why = f"replaces launch=slurm, but the recipe has launch={prepared.recipe.launch.kind}"
        raise UserError(Problem("--here", why, "leave it out: the search runs on this machine anyway"))
    if options.best:
        train_best(prepared, options)
        return
    if options.table:
        if not (prepared.folder / LOCKS).is_dir():
            raise UserError(
                Problem("--table", "there is no study in this folder", "search first", str(prepared.folder))
            )
        show_results(open_study(prepared))
    elif prepared.recipe.launch.kind == "slurm" and not options.here:
        begun(prepared, options.fresh)
        submit_workers(prepared, options.jobs or prepared.search.jobs)
    else:
        use_node_storage()
        run(prepared, options.jobs, options.fresh)


def run(
    prepared: Prepared, jobs: int | None = None, fresh: bool = False, starter: TrialStarter | None = None
) -> StudyStore:
    """Run the trials that a study still lacks, and write and show its results.

    Args:
        starter: starts the processes of trials; None starts and ends one.

    Raises:
        RanksFailed: too many trials have failed, or none has ended with a value.
    """
    jobs = jobs or prepared.search.jobs
    _refuse_jobs(prepared, jobs)
    engine = build_engine(prepared.search.engine)
    store = begun(prepared, fresh)
    _announce(prepared, store)
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    starts = starter or TrialStarter(prepared.sample, int(threads or 0))
    with storage_errors(prepared.search.storage):
        try:
            Search(prepared, store, engine, jobs, starts).run()
        finally:
            if starter is None:
                starts.close()
            write_results(store)
            show_results(store)
    if not best_trials(store) and all(trial.state.is_finished() for trial in store.trials):
        raise RanksFailed("no trial has ended with a value; the table above says how each has ended")
    return store


def begun(prepared: Prepared, fresh: bool) -> StudyStore:
    """The study with its folder and first trials; an earlier one goes on, or with ``fresh`` is moved aside."""
    if fresh:
        _set_aside(prepared)
    store = open_study(prepared)
    with store.locked():
        write_recipe(prepared.recipe, prepared.folder)
        prepared.command.write(prepared.folder)
    build_engine(prepared.search.engine).begin_with(store, *first_points(prepared))
    return store


def open_study(prepared: Prepared) -> StudyStore:
    open_run_folder(prepared.folder, fresh=False)
    return StudyStore(
        prepared.folder,
        prepared.name,
        prepared.search,
        prepared.objective,
        prepared.identity,
        prepared.space.combinations if isinstance(prepared.space, Space) else None,
    )


def train_best(prepared: Prepared, options: argparse.Namespace) -> None:
    """Train the best recipe of a study, or go on with it.

    Raises:
        UserError: the study has none, or several.
    """
    from .. import train

    file = prepared.folder / BEST
    if not prepared.objective.single:
        fix = f"choose one of {prepared.folder / 'front'}: trireme train FILE"
        raise UserError(Problem("--best", "has no meaning with several objectives", fix))
    if not (prepared.folder / LOCKS).is_dir() or not best_trials(open_study(prepared)):
        fix = "run the search first: the same command without --best"
        raise UserError(Problem("--best", "the study has no trial with a value yet", fix, str(prepared.folder)))
    ranks = prepared.command.nproc if options.nproc is None else options.nproc
    nproc = [] if ranks is None else ["--nproc", str(ranks)]
    folders = [part for folder in options.recipe_dir for part in ("--recipe-dir", folder)]
    fresh = ["--fresh"] if options.fresh else []
    from ..recipe_arguments import add_training_arguments

    parser = argparse.ArgumentParser()
    add_training_arguments(parser)
    parser.set_defaults(debug=options.debug)
    say(f"training {file}")
    train.run(parser.parse_args([str(file), *nproc, *folders, *fresh]))


def first_points(prepared: Prepared) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """The fixed values of the first trials (``search.first``), and the recipe's own values if the space holds them."""
    space = prepared.space
    if not isinstance(space, Space):
        return prepared.search.first, None
    own = own_values(prepared, space) if prepared.search.own_first else {}
    whole = space.stored(own).keys() == {each.name for each in space.parameters if each.active(own)}
    return [space.stored(point) for point in prepared.search.first], space.stored(own) if whole else None


def own_values(prepared: Prepared, space: Space) -> dict[str, Any]:
    """The recipe's own values of the keys that are searched; for a group the name of its file."""
    from ..given_recipe import GivenRecipe

    given = GivenRecipe(prepared.command.recipe, prepared.command.of_trials, prepared.command.recipe_dirs)
    files = [file.partition("/") for file in given.hydra([], given.accepted, lambda config: None)]
    chosen = {group: name for group, _, name in files if name}
    own: dict[str, Any] = {}
    for key in space.keys:
        value = chosen.get(key) if key in chosen else value_at(prepared.raw, key)
        if value is not None and not isinstance(value, Mapping):
            own[key] = value
    return own


def _announce(prepared: Prepared, store: StudyStore) -> None:
    search, there = prepared.search, len(store.trials)
    goal = ", ".join(f"{mode} {name}" for name, mode in prepared.objective.modes.items())
    begun = f", {there} begun before" if there else ""
    say(f"study {prepared.name}: {search.trials} trial(s) on {prepared.ranks} rank(s) each ({goal}){begun}")
    say(f"its folder: {prepared.folder}")
    if store.combinations is not None and search.trials > store.combinations:
        say(f"note: the space has {store.combinations} combinations, and the search ends when each was tried")
    if search.pruner is not None and not prepared.objective.single:
        say("note: nothing is pruned, since pruners judge by one objective")
    elif (
        search.pruner is not None
        and prepared.recipe.trainer.eval_every is None
        and any(name.startswith("eval_") for name in prepared.objective.names)
    ):
        say("note: nothing is pruned, since no evaluation runs before the end (trainer.eval_every is null)")


def _refuse_jobs(prepared: Prepared, jobs: int) -> None:
    """Refuse a number of trials at once (``--jobs``) that the engine cannot have.

    Raises:
        UserError: it cannot.
    """
    most = engine_class(prepared.search.engine).MOST_JOBS
    if most is not None and jobs > most:
        title = engine_class(prepared.search.engine).TITLE
        raise UserError(Problem("--jobs", f"is more than {title} can have at once", f"use {most}", jobs))


def _set_aside(prepared: Prepared) -> None:
    """Move the folder of an earlier study aside.

    Raises:
        UserError: it lies in a database, or a worker still runs it.
    """
    if prepared.search.storage is not None:
        fix = "choose another search.study, or delete the study with optuna's own command"
        raise UserError(Problem("--fresh", "does not delete studies of a database", fix, prepared.name))
    for file in sorted((prepared.folder / LOCKS).glob("trial_*")):
        lock = lock_file(file, wait=False)
        if lock is None:
            fix = "end that search first"
            raise UserError(Problem("--fresh", f"{file.name} is running in another search", fix, str(prepared.folder)))
        os.close(lock)
    open_run_folder(prepared.folder, fresh=True)
