"""Check recipes and submit them as one SLURM job (an array for a sweep): report all problems, write the script into the
run folder, call sbatch.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from ..accelerate import contradictions
from ..compose_sweep import chooses_by_results, sweep_folder
from ..composed import Composed
from ..launch_config import LaunchConfig, Shape
from ..planning import AUTO, own_options, without_plan
from ..sweep_jobs import refuse_run_folder
from ..train import rank_arguments, read
from .job_queue import refuse_going
from .job_record import Record
from .job_script import Run, Script
from .slurm_commands import require, submit

if TYPE_CHECKING:
    from ...configs.schema import RecipeConfig
    from ...parallel.plan import Plan

REMEDY = "change launch.nodes, launch.gpus_per_node or launch.ranks_per_node"


def submit_runs(jobs: Sequence[Composed], options: argparse.Namespace) -> None:
    """Submit one recipe, or all jobs of a sweep as one array, and print how to follow it.

    Raises:
        UserError: a recipe has problems (all are reported), or sbatch refuses the job.
    """
    recipes = _checked(jobs, options)
    script = _script(jobs, recipes, options)
    if options.dry_run:
        print(script.text(), end="")
        return
    require("sbatch")
    for run in script.runs:
        refuse_going(run.dir)
    refuse_going(script.folder)
    number = _hand_over(script, options)
    _tell(script, number, recipes[0][0])


def _checked(jobs: Sequence[Composed], options: argparse.Namespace) -> list[tuple[RecipeConfig, Shape]]:
    """Typed recipes with their machines and ranks.

    Raises:
        UserError: all problems of all jobs.
    """
    problems: dict[str, Problem | str] = {}
    found = []
    if options.multirun and chooses_by_results(options.overrides):
        why = "chooses a job by the results of earlier ones, so that they cannot be one array"
        problems["sweeper"] = Problem("hydra/sweeper", why, "use launch=local, or leave it out")
    for composed in jobs:
        try:
            found.append(checked_job(composed, options))
            if options.resume == "auto" and not options.fresh:
                _refuse_other_recipe(found[-1][0])
        except UserError as error:
            problems.update((str(problem), problem) for problem in error.problems)
    if options.max_restarts and any(recipe.launch.tasks == "rank" for recipe, _ in found):
        why = "needs a launcher on each machine, but srun starts every rank by itself"
        problems["restarts"] = Problem("--max-restarts", why, "set launch.tasks=node", options.max_restarts)
    logs = {recipe.launch.log for recipe, _ in found if recipe.launch.log} if len(jobs) > 1 else set()
    for log in logs:
        if "%j" in log or "%a" not in log:
            why = "does not name the log of each job of a sweep, a task of an array"
            problems["log"] = Problem("launch.log", why, "use %A (the array) and %a (the task)", log)
    if len({(str(asdict(recipe.launch)), shape) for recipe, shape in found}) > 1:
        why = "differs between jobs of the sweep, which as tasks of one array get the same machines"
        problems["launch"] = Problem("launch", why, "submit them one by one, or give launch.nodes and ranks_per_node")
    if problems:
        raise UserError(*problems.values())
    return found


def checked_job(composed: Composed, options: argparse.Namespace) -> tuple[RecipeConfig, Shape]:
    """The typed recipe, and how many machines and ranks it gets.

    Raises:
        UserError: all problems of the recipe.
    """
    launch = _launch_part(composed.raw)

    def world_size(plan: Plan) -> int:
        return launch.shape(plan).world_size if launch else plan.default_world_size(1)

    if composed.raw["plan"].get("name") == AUTO:  # chosen on the machines that will train, by their memory
        recipe, problems = without_plan(composed, own_options(composed)), []
    else:
        recipe, problems = read(composed, world_size, REMEDY, getattr(options, "fresh", False))
        if recipe is not None and options.accelerate:
            problems += contradictions(options.accelerate, recipe, world_size(recipe.plan))
    if options.nproc is not None:
        fix = f"{REMEDY.replace('change', 'set')} instead"
        problems.append(
            Problem("--nproc", "sets processes on this machine, but the recipe runs in a SLURM job", fix, options.nproc)
        )
    if recipe is None or problems:
        raise UserError(*problems)
    return recipe, recipe.launch.shape(recipe.plan)


def _launch_part(raw: dict[str, Any]) -> LaunchConfig | None:
    """The ``launch`` part; None if it has problems, which are reported together with those of the other parts."""
    from ...configs.validate import read as read_part

    return read_part(raw.get("launch") or {}, LaunchConfig)[0]


def _refuse_other_recipe(recipe: RecipeConfig) -> None:
    """Compare with the run's newest checkpoint now: otherwise the ranks would refuse it after an hour in the queue."""
    from ...trainer.checkpoint.layout import checkpoints_at, not_finite, verify
    from ...trainer.run_folder import refuse_other_recipe

    here = checkpoints_at(Path(recipe.run.dir))
    whole = (folder for folder in here if verify(folder, contents=False) is None and not_finite(folder) is None)
    checkpoint = next(whole, None)
    if checkpoint is not None:
        refuse_other_recipe(recipe, checkpoint)


def _script(
    jobs: Sequence[Composed], recipes: Sequence[tuple[RecipeConfig, Shape]], options: argparse.Namespace
) -> Script:
    recipe, shape = recipes[0]
    here = Path.cwd()
    runs = [
        Run(here / each.run.dir, rank_arguments(composed, options))
        for composed, (each, _) in zip(jobs, recipes, strict=True)
    ]
    whole = recipe.run.dir
    if len(runs) > 1:
        whole = sweep_folder(jobs[0].recipe, options.overrides, options.recipe_dir)
        refuse_run_folder(Path(whole))
    script = Script(
        launch=recipe.launch,
        shape=shape,
        name=recipe.launch.job_name or jobs[0].recipe.stem,
        folder=here / whole,
        work_dir=here,
        runs=runs,
        reads=[here / folder for folder in (*(job.recipe.parent for job in jobs), *options.recipe_dir)],
        max_restarts=options.max_restarts,
    )
    if folders := script.unmountable():
        why = "cannot be mounted into a container: its name has a comma or colon"
        raise UserError(*(Problem("launch.container", why, "choose another folder", str(each)) for each in folders))
    return script


def _hand_over(script: Script, options: argparse.Namespace) -> str:
    """Make the folders, write the script, submit it; returns the number of the job, which is noted in the folder."""
    from ...trainer.restart import note_launch
    from ...trainer.run_folder import open_run_folder, unwritable

    for run in script.runs:
        open_run_folder(run.dir, options.fresh, options.resume)
        # Noted before submitting: the first attempt may be preempted before its ranks could note it.
        note_launch(run.dir, options.resume, submitted=True)
    open_run_folder(script.folder, fresh=False)
    try:
        for folder in {Path(script.log).parent, *(run.dir / "logs" for run in script.runs)}:
            folder.mkdir(parents=True, exist_ok=True)  # where it is missing, SLURM writes no log and says nothing
        partial = script.path.with_name(f".{script.path.name}.partial")
        partial.write_text(script.text())
        os.replace(partial, script.path)
    except OSError as error:
        raise UserError(unwritable(script.folder, error)) from None
    number = submit(str(script.path))
    record(script, number)
    return number


def record(script: Script, number: str) -> None:
    """Write the job's number into its run folder, and that of each task of an array into the task's run folder."""
    if not script.is_array:
        return Record(number, script.log_of(number)).write(script.folder)
    Record(number, script.log, [str(run.dir) for run in script.runs]).write(script.folder)
    for index, run in enumerate(script.runs):
        Record(f"{number}_{index}", script.log_of(number, index)).write(run.dir)


def _tell(script: Script, number: str, recipe: RecipeConfig) -> None:
    shape, where = script.shape, os.path.relpath(script.folder)
    tasks = f" with {len(script.runs)} tasks" if script.is_array else ""
    machines = f"{shape.nodes} node{'s' if shape.nodes > 1 else ''} x {shape.ranks_per_node}"
    ranks = f"{machines} rank{'s' if shape.ranks_per_node > 1 else ''}"
    follow = os.path.relpath(script.runs[0].dir) if script.is_array else where
    print(
        f"submitted job {number}{tasks}: {ranks}, plan {recipe.plan.name}\n"
        f"  script  {os.path.relpath(script.path)}\n"
        f"  follow  trireme logs {follow} -f\n"
        f"  state   trireme jobs\n"
        f"  end     trireme cancel {where}"
    )
