"""``trireme batch-size``: the largest micro-batch that fits, found by trying, under any plan.

accelerate's ``find_executable_batch_size`` does the search. Every try is a short run in processes of its own: after an
out-of-memory error in one of several ranks, the others wait in a collective, and nobody can go on from there.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from ..errors import Problem, UserError
from .compose import compose
from .elastic import launched, start_ranks
from .error_report import RanksFailed
from .train import checked, rank_arguments

STEPS = 2
"""Optimizer state is allocated in the first step, so the second has all of it beside its activations."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "SIGKILL")
"""What a failed run says: the GPU's and the CPU's allocator, C++, and the kernel's out-of-memory killer."""


def find_batch_size(options: argparse.Namespace) -> tuple[int, int]:
    """The largest ``trainer.micro_batch_size`` that fits, and the accumulation that goes with it.

    Raises:
        UserError: the recipe has problems, or not even one sample fits.
        RanksFailed: a try failed for another reason.
    """
    from accelerate.utils import find_executable_batch_size

    if launched():
        raise UserError(
            Problem("batch-size", "starts processes of its own", "run it without a launcher, with --nproc N")
        )
    one = ["trainer.micro_batch_size=1"]
    recipe, ranks = checked(compose(options.recipe, [*options.overrides, *one], options.recipe_dir), options.nproc)
    share = recipe.trainer.global_batch_size // recipe.plan.degrees(ranks).data
    sizes = [size for size in range(share, 0, -1) if share % size == 0]

    def smaller() -> int:
        return sizes.pop(0) if sizes else 0

    search: Callable[[], int] = find_executable_batch_size(
        lambda size: _try(options, size), starting_batch_size=sizes.pop(0), reduce_batch_size_fn=smaller
    )
    try:
        size = search()
    except RuntimeError as error:
        if "No executable batch size" not in str(error):
            raise
        fix = "use a plan that shards more, plan.recompute=full, or a shorter data.block_size"
        raise UserError(Problem("trainer.micro_batch_size", "not even 1 fits into memory", fix)) from None
    return size, share // size


def _try(options: argparse.Namespace, size: int) -> int:
    """Train two steps with micro-batches of ``size``; a RuntimeError that accelerate understands if they don't fit."""
    with tempfile.TemporaryDirectory(prefix="trireme_batch_size_") as folder:
        changes = [
            f"trainer.micro_batch_size={size}",
            f"trainer.max_steps={STEPS}",
            "trainer.epochs=null",
            "trainer.stop_at=null",
            "scheduler=constant",
            "trainer.eval_at_end=false",
            "trainer.eval_every=null",
            "checkpoint.at_end=false",
            "checkpoint.every=null",
            f"run.dir={folder}/run",
        ]
        composed = compose(options.recipe, [*options.overrides, *changes], options.recipe_dir)
        try:
            _, ranks = checked(composed, options.nproc)
        except UserError:
            return _does_not_run(size)
        try:
            start_ranks(ranks, rank_arguments(composed, options), Path(folder) / "run")
        except RanksFailed as failure:
            if any(words in str(failure) for words in OUT_OF_MEMORY):
                print(f"micro-batches of {size}: out of memory", flush=True)
                raise RuntimeError("CUDA out of memory.") from None
            raise
    print(f"micro-batches of {size}: fit", flush=True)
    return size


def _does_not_run(size: int) -> int:
    """A size that the plan cannot run (a pipeline needs several micro-batches) is passed over."""
    print(f"micro-batches of {size}: not with this plan", flush=True)
    raise RuntimeError("CUDA out of memory.")
