"""Train a recipe: compose it, check it, then start ranks or train as one of them. The options can also ask for a sweep
(``--multirun``) or for printing the recipe.

``trireme train RECIPE`` and, under a launcher, ``torchrun --nproc-per-node 2 -m trireme.launch.train RECIPE`` both run
this module. The recipe is checked before a process starts and before anything is written.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Problem, UserError
from ..trainer.spinner import say, spinning, stop
from .command import Command
from .elastic import choose_world_size, cores_per_rank, import_ahead, launched, start_ranks
from .error_report import Diverged, LeftEarly, speak_json
from .failures import OWN_LAUNCH, leave
from .hostfile import refuse_missing_hostfile
from .notes import tell
from .quick_imports import quick_imports
from .rank_imports import imports_of
from .recipe_arguments import TRAINING_EXAMPLES, add_training_arguments
from .slurm.job_task import use_node_storage

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig
    from ..parallel.plan import Plan
    from .composed import Composed


def main(argv: Sequence[str] | None = None, prog: str = "python -m trireme.launch.train") -> int:
    """Entry point for ranks and launchers; returns the exit code."""
    about = "train a recipe; the same command resumes it"
    command = Command("train", "", about, run, add_training_arguments, "", TRAINING_EXAMPLES, True)
    return command.call(argv, prog)


def run(options: argparse.Namespace) -> None:
    """Train, sweep, or print the recipe, depending on the options.

    Raises:
        UserError: something the user can mend.
        LeftEarly: the run stopped early by a signal or the wall-clock limit, and everything is saved.
        Diverged: the run ended with a loss or weights that are not finite.
        RanksFailed: a rank failed.
    """
    from .accelerate import take_choices
    from .compose import compose, show

    use_node_storage()
    take_choices(options)
    flags = hydra_flags(options)
    if flags:
        show(options.recipe, options.overrides, options.recipe_dir, flags)
    elif options.multirun:
        _sweep(options)
    else:
        with spinning("reading the recipe") if not launched() or own_rank_0() else nullcontext():
            composed = compose(options.recipe, options.overrides, options.recipe_dir)
            speak_json((composed.raw.get("run") or {}).get("log_format") == "json")
            _train(composed, options, own_process=False)


def hydra_flags(options: argparse.Namespace) -> list[str]:
    """Hydra's flags that print the recipe instead of training it."""
    _refuse_flags(options)
    flags = ["--cfg", options.cfg] if options.cfg else []
    flags += ["--resolve"] if options.resolve else []
    flags += ["--package", options.package] if options.package else []
    return flags + (["--info", options.info] if options.info else [])


def _refuse_flags(options: argparse.Namespace) -> None:
    """Refuse flags that contradict each other, or do nothing without another.

    Raises:
        UserError: all of them.
    """
    problems: list[Problem | str] = []
    for name in ("resolve", "package"):
        if getattr(options, name) and not options.cfg:
            value = options.package if name == "package" else None
            problems.append(Problem(f"--{name}", "is about the recipe that --cfg prints", "add --cfg job", value))
    if options.cfg and options.info:
        problems.append(Problem("--info", "prints something else than --cfg", "leave one of them out", options.info))
    if options.multirun and (shows := "--cfg" if options.cfg else "--info" if options.info else ""):
        fix = f"leave -m out, with one value for each key; or check all runs: trireme check {options.recipe} -m"
        problems.append(Problem("--multirun", f"starts runs, and {shows} prints one recipe", fix))
    if problems:
        raise UserError(*problems)


def checked(
    composed: Composed, nproc: int | None, accelerate: Mapping[str, str] | None = None, fresh: bool = False
) -> tuple[RecipeConfig, int]:
    """The typed recipe and its number of processes.

    Args:
        accelerate: settings of accelerate, which must not contradict the recipe.
        fresh: an earlier run in the folder will be moved aside, so the recipe cannot lean on it.

    Raises:
        UserError: all problems of the recipe.
    """
    from .accelerate import contradictions, not_here
    from .planning import planned

    tell(composed.notes)
    composed = planned(composed, nproc, show=False)  # does nothing if the caller has planned already
    chosen: list[int] = []

    def world_size(plan: Plan) -> int:
        chosen.append(choose_world_size(plan, nproc))
        return chosen[0]

    recipe, problems = read(composed, world_size, fresh=fresh)
    if accelerate and recipe is not None:
        problems += contradictions(accelerate, recipe, chosen[0])
        problems += [] if launched() else not_here(accelerate)
    if nproc is not None and nproc < 1:
        problems.append(Problem("--nproc", "must be at least 1", "write 1 or more, or leave it out", nproc))
    if launched() and nproc not in (None, int(os.environ["WORLD_SIZE"])):
        problems.append(
            Problem("--nproc", f"the launcher has started {os.environ['WORLD_SIZE']} ranks", "leave it out", nproc)
        )
    if problems or recipe is None:
        raise UserError(*problems)
    return recipe, chosen[0]


def read(
    composed: Composed, world_size: Callable[[Plan], int], remedy: str = "change --nproc", fresh: bool = False
) -> tuple[RecipeConfig | None, list[Problem]]:
    """The typed recipe or None, and its problems; ``remedy`` tells the user how to change the number of processes."""
    with quick_imports():
        from ..configs.schema import read_recipe

    look = not launched()  # ranks need not check the data: the parent has, and they read it next anyway
    recipe, problems = read_recipe(composed.raw, world_size, remedy, look_at_data=look, fresh=fresh)
    return recipe, composed.with_problems_of_values(problems)


def _train(composed: Composed, options: argparse.Namespace, own_process: bool) -> None:
    """Check, then train: as a rank if a launcher started this process, else in this process or in new ranks."""
    from ..models.accept_in_subprocess import accept_apart
    from ..trainer.restart import attempt
    from ..trainer.run_folder import open_run_folder
    from .accelerate import take_gpus
    from .planning import planned
    from .slurm.job_queue import refuse_going

    if not launched():
        take_gpus(options.accelerate)
    composed = planned(composed, options.nproc)
    further = imports_of(composed.raw)
    import_ahead(options.nproc, further)
    if not launched() and (options.nproc or 1) > 1 and isinstance(composed.raw.get("model"), dict):
        accept_apart(composed.raw["model"])  # so that no rank waits until this process has imported torch
    recipe, ranks = checked(composed, options.nproc, options.accelerate, options.fresh and not attempt())
    if launched():
        _refuse_restarts(options.max_restarts)
        refuse_missing_hostfile()
        _go(recipe, options.resume, options.fresh)
        return
    run_dir = Path(recipe.run.dir)
    if "SLURM_JOB_ID" not in os.environ and shutil.which("squeue"):
        refuse_going(run_dir)
    if options.fresh:
        refuse_unusable(options.resume)
    open_run_folder(
        run_dir, options.fresh, options.resume
    )  # before ranks start, so that their log files are not moved aside
    if ranks == 1 and not own_process and not options.max_restarts:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores_per_rank(1)))
        _go(recipe, options.resume, fresh=False)
    else:
        started = time.time() if own_process else None  # the wall-clock limit holds for each job of a sweep
        arguments = rank_arguments(composed, options)
        stop()  # the spinner, since rank 0 takes the terminal and has its own
        start_ranks(ranks, arguments, run_dir, max_restarts=options.max_restarts, started=started, imports=further)


def refuse_unusable(resume: str) -> None:
    """Refuse a named checkpoint that a run cannot begin from, before an earlier run is moved aside.

    Raises:
        UserError: it is missing or damaged.
    """
    if resume in ("auto", "never"):
        return
    with quick_imports():  # torch and transformers
        from ..trainer.checkpoint.load.weight_reader import usable_checkpoint

    usable_checkpoint(Path(resume).expanduser(), "--resume", contents=False)


def _refuse_restarts(wanted: int) -> None:
    """Refuse ``--max-restarts`` in launched ranks, since only their launcher could restart them."""
    if wanted and OWN_LAUNCH not in os.environ:
        fix = "give it to the launcher instead, as torchrun --max-restarts N"
        raise UserError(Problem("--max-restarts", "has no effect in ranks that a launcher has started", fix, wanted))


def _go(recipe: RecipeConfig, resume: str, fresh: bool) -> None:
    say("loading libraries")
    with quick_imports():
        from ..trainer.build import train

    result = train(recipe, resume=resume, fresh=fresh)
    if result.not_finite:
        raise Diverged
    if result.interrupted:
        raise LeftEarly


def own_rank_0() -> bool:
    """Whether this is rank 0 of ranks that trireme started; no other rank writes to the terminal."""
    return OWN_LAUNCH in os.environ and os.environ["RANK"] == "0"


def rank_arguments(composed: Composed, options: argparse.Namespace) -> list[str]:
    """Arguments of a rank, which composes the same recipe again."""
    folders = [part for folder in options.recipe_dir for part in ("--recipe-dir", folder)]
    debug = ["--debug"] if options.debug else []
    resume = ["--resume", options.resume] if "resume" in options else []
    return [str(composed.recipe), *composed.overrides, *resume, *folders, *debug]


def _sweep(options: argparse.Namespace) -> None:
    """Run the jobs of a sweep one after the other in new processes; none starts if one of them has a problem."""
    from .compose_sweep import sweep
    from .sweep_jobs import Jobs, refuse_run_folder

    if launched():
        raise UserError(
            Problem("--multirun", "starts processes of its own", "run it without a launcher, with --nproc N")
        )

    def job(composed: Composed) -> float | None:
        print(f"{composed.recipe.stem}: {composed.raw['run']['dir']}", file=sys.stderr, flush=True)
        return jobs.run(composed, lambda: _train(composed, options, own_process=True))

    jobs = Jobs()
    try:
        sweep(
            options.recipe,
            options.overrides,
            options.recipe_dir,
            lambda jobs: _check_jobs(jobs, options),
            job,
            refuse_run_folder,
        )
    finally:
        jobs.show()
    jobs.raise_diverged()


def check_sweep(options: argparse.Namespace) -> list[tuple[RecipeConfig, int]]:
    """Check every job of a sweep and start none.

    Raises:
        UserError: the problems of all jobs.
    """
    from .compose_sweep import sweep_jobs

    return _check_jobs(sweep_jobs(options.recipe, options.overrides, options.recipe_dir), options)


def _check_jobs(jobs: Sequence[Composed], options: argparse.Namespace) -> list[tuple[RecipeConfig, int]]:
    """Check all jobs. Jobs with the same problem share one message, which names the first job by its overrides."""
    from .planning import planned

    found: dict[str, tuple[Problem | str, list[str]]] = {}
    good = []
    for composed in jobs:
        try:
            plan = planned(composed, options.nproc, show=False)
            good.append(checked(plan, options.nproc, options.accelerate, getattr(options, "fresh", False)))
        except UserError as error:
            for problem in error.problems:
                found.setdefault(str(problem), (problem, []))[1].append(composed.job)
    if found:
        raise UserError(*(_of_jobs(problem, names, len(jobs)) for problem, names in found.values()))
    return good


def _of_jobs(problem: Problem | str, names: Sequence[str], jobs: int) -> Problem | str:
    if isinstance(problem, str) or len(names) == jobs:
        return problem
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return replace(problem, why=f"{problem.why} (job {names[0]}{more})")


if __name__ == "__main__":
    leave(main())
