"""Submit the workers of a search as one SLURM job or array: each task is a worker that runs trials on one machine.

The study is made here, so that its problems are reported before anything is queued. When SLURM ends a worker early, the
worker lets its trials save and exits with code 75, and SLURM queues it again.
"""

from __future__ import annotations

import os
from pathlib import Path

from ...errors import Problem, UserError
from ...trainer.run_folder import unwritable
from ..launch_config import Shape
from ..slurm.job_record import Record
from ..slurm.job_script import Run, Script
from ..slurm.slurm_commands import require, submit
from .prepared import Prepared

WORKER = "-m trireme.launch.cli search"


def submit_workers(prepared: Prepared, jobs: int) -> None:
    """Submit, and print how to follow the study.

    Args:
        jobs: trials at once within each worker.

    Raises:
        UserError: the recipe's ``launch`` part does not fit, or sbatch refuses the job.
    """
    refuse_shape(prepared)
    require("sbatch")
    script = worker_script(prepared, jobs)
    try:
        Path(script.log).parent.mkdir(parents=True, exist_ok=True)  # where it is missing, SLURM writes no log
        partial = script.path.with_name(f".{script.path.name}.partial")
        partial.write_text(script.text())
        os.replace(partial, script.path)
    except OSError as error:
        raise UserError(unwritable(script.folder, error)) from None
    number = submit(str(script.path))
    Record(number, script.log_of(number)).write(script.folder)
    where = os.path.relpath(script.folder)
    workers = f"{len(script.runs)} worker{'s' if script.is_array else ''}"
    print(
        f"submitted job {number}: {workers} with {jobs} trial(s) at once on {prepared.ranks} rank(s) each\n"
        f"  script  {os.path.relpath(script.path)}\n"
        f"  state   trireme jobs\n"
        f"  table   trireme search {where} --table\n"
        f"  end     trireme cancel {where}"
    )


def worker_script(prepared: Prepared, jobs: int) -> Script:
    """The script of the workers, which all run the same command."""
    launch, here = prepared.recipe.launch, Path.cwd()
    command = prepared.command
    arguments = [command.recipe, *command.overrides, "--here", "--jobs", str(jobs)]
    arguments += [] if command.nproc is None else ["--nproc", str(command.nproc)]
    arguments += [part for folder in command.recipe_dirs for part in ("--recipe-dir", folder)]
    folder = here / prepared.folder
    return Script(
        launch=launch,
        shape=Shape(1, prepared.ranks * jobs),
        name=launch.job_name or prepared.name,
        folder=folder,
        work_dir=here,
        runs=[Run(folder, arguments)] * prepared.search.workers,
        reads=[Path(command.recipe).parent, *(here / each for each in command.recipe_dirs)],
        command=WORKER,
    )


def refuse_shape(prepared: Prepared) -> None:
    """Refuse machines that a worker has no use for.

    Raises:
        UserError: a worker would get several machines, or a process for each rank.
    """
    launch, problems = prepared.recipe.launch, []
    if launch.nodes not in (None, 1):
        fix = "leave it out, and set search.workers to the number of machines"
        why = "gives a worker several machines, and its trials run on one"
        problems.append(Problem("launch.nodes", why, fix, launch.nodes))
    if launch.tasks == "rank":
        problems.append(Problem("launch.tasks", "starts every rank by srun; a worker starts its own", "set it to node"))
    if launch.log and "%a" not in launch.log and prepared.search.workers > 1:
        problems.append(Problem("launch.log", "does not name the log of each worker", "use %A and %a", launch.log))
    if problems:
        raise UserError(*problems)
