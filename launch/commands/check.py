"""``trireme check``: report the problems of a recipe, or what its run would do, without training."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_accelerate_argument, add_recipe_arguments

EXAMPLES = """examples:
  trireme check my/recipe.yaml
  trireme check my/recipe.yaml plan=fsdp_full_shard trainer.global_batch_size=64 --nproc 8
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    add_accelerate_argument(parser)
    parser.add_argument("--multirun", "-m", action="store_true", help="every combination of key=a,b")


def run(options: argparse.Namespace) -> None:
    from ...models.accept_in_subprocess import accept_apart
    from ..accelerate import take_choices
    from ..compose import compose
    from ..composed import runs_on
    from ..listing import describe_run
    from ..planning import planned
    from ..slurm.submit import checked_job
    from ..train import check_sweep, checked

    asked_for = options.nproc
    take_choices(options)
    if options.multirun:
        print("\n\n".join(describe_run(*job) for job in check_sweep(options)))
        return
    composed = compose(options.recipe, options.overrides, options.recipe_dir)
    if isinstance(composed.raw.get("model"), dict):
        accept_apart(composed.raw["model"])
    if runs_on(composed) == "slurm":
        options.nproc = asked_for  # the machines decide the number of processes, not accelerate's file
        recipe, shape = checked_job(composed, options)
        print(describe_run(recipe, shape.world_size))
        return
    composed = planned(composed, options.nproc)
    print(describe_run(*checked(composed, options.nproc, options.accelerate)))


COMMAND = Command(
    "check",
    "RECIPE ...",
    "report all problems of a recipe; start nothing",
    run,
    arguments,
    examples=EXAMPLES,
)
