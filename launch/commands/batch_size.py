"""``trireme batch-size``: try micro-batch sizes to find the largest one that fits into memory."""

from __future__ import annotations

import argparse

from ..command import Command
from ..recipe_arguments import add_recipe_arguments

EXAMPLES = """examples:
  trireme batch-size pretrain/persimmon_stdlib
  trireme batch-size my/recipe.yaml plan=ddp --nproc 2
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)
    parser.set_defaults(resume="never")


def run(options: argparse.Namespace) -> None:
    from ..find_batch_size import find_batch_size
    from ..planning import fixed_overrides

    options.overrides = fixed_overrides(options, "trainer.micro_batch_size=1")
    size, accumulation = find_batch_size(options)
    print(f"trainer.micro_batch_size={size}   # {accumulation} micro-batch(es) per step")


COMMAND = Command(
    "batch-size",
    "RECIPE ...",
    "find the largest micro-batch that fits, by trying",
    run,
    arguments,
    description="Find the largest micro-batch of a recipe that fits into memory, by trying.",
    examples=EXAMPLES,
)
