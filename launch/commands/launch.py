"""``trireme launch``: start a recipe on this machine or in a SLURM job, as the recipe's ``launch`` part says.

``launch=local`` (the default) does the same as ``trireme train``. ``launch=slurm`` makes the same checks, writes the
script of a job into the run folder and submits the job. With ``--multirun``, it submits one job for each combination of
values.
"""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_training_arguments

EXAMPLES = """examples:
  trireme launch pretrain/persimmon_stdlib plan=ddp launch=slurm launch.nodes=2 launch.gpus_per_node=1 --dry-run
  trireme launch pretrain/persimmon_stdlib plan=zero2 launch=slurm launch.gpus_per_node=2 launch.time=12:00:00
  trireme launch pretrain/persimmon_stdlib launch=slurm -m optimizer.lr=1e-3,3e-3
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_training_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="check, and print the script; submit and write nothing")


def launch(options: argparse.Namespace) -> None:
    """Train here, submit jobs, or print the script of a job, depending on recipe and options.

    Raises:
        UserError: something the user can mend; nothing was submitted.
    """
    from ..accelerate import take_choices
    from ..compose import compose
    from ..compose_sweep import chooses_by_results, sweep_jobs
    from ..composed import runs_on
    from ..overrides import without_choices
    from ..slurm.submit import submit_runs
    from ..train import hydra_flags, run

    asked_for = options.nproc
    take_choices(options)
    if hydra_flags(options):
        return run(options)
    if options.multirun and not chooses_by_results(options.overrides):
        jobs = sweep_jobs(options.recipe, options.overrides, options.recipe_dir)
    else:
        fixed = without_choices(options.overrides) if options.multirun else options.overrides
        jobs = [compose(options.recipe, fixed, options.recipe_dir)]
    if "slurm" in {runs_on(job) for job in jobs}:
        options.nproc = asked_for  # the machines decide the number of processes, not accelerate's file
        return submit_runs(jobs, options)
    return _describe(jobs, options) if options.dry_run else run(options)


def _describe(jobs: list, options: argparse.Namespace) -> None:
    """Check all jobs and print a summary of each."""
    from ..listing import describe_run
    from ..planning import planned
    from ..train import checked

    for composed in jobs:
        print(describe_run(*checked(planned(composed, options.nproc), options.nproc, options.accelerate)))


COMMAND = Command(
    "launch",
    "RECIPE ...",
    "train in a SLURM job: launch=slurm launch.nodes=2",
    launch,
    arguments,
    description="Train a recipe here (launch=local) or in a job of a SLURM cluster (launch=slurm).",
    examples=EXAMPLES,
    may_be_rank=True,
)
