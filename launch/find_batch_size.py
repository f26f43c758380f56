"""``trireme batch-size``: find the largest micro-batch size that fits into memory under a recipe's plan. Sizes that
divide a rank's share of the global batch are tried, the largest first.

A rank's micro-batch cannot be larger than the rank's share of the global batch, so no larger size is tried. If the
whole share fits, a message says that the global batch is the limit.

accelerate's ``find_executable_batch_size`` does the search. Every try is a short run in new processes, because an
out-of-memory error in one rank leaves the others waiting in a collective.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from .compose import compose
from .composed import Composed
from .elastic import launched, start_ranks
from .error_report import RanksFailed
from .train import checked, rank_arguments

STEPS = 2
"""Optimizer state is allocated in the first step, so the second step shows the peak of state and activations."""
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "bad_alloc", "SIGKILL")
"""Words in the error of a run that ran out of memory, by GPU and CPU allocators, C++, and the kernel's OOM killer."""

ACTING = ("flow", "nonfinite")
"""Callbacks of trireme that change how a step runs, so a try keeps them."""


def find_batch_size(options: argparse.Namespace) -> tuple[int, int]:
    """The largest ``trainer.micro_batch_size`` that fits, and the number of micro-batches per step that it needs.

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
    shares = recipe.plan.degrees(ranks).data
    share = recipe.trainer.global_batch_size // shares
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
        fix = "use a plan that shards more, plan.recompute=full, or shorter samples"
        raise UserError(Problem("trainer.micro_batch_size", "not even 1 fits into memory", fix)) from None
    if size == share:
        print(_capped(size, recipe.trainer.global_batch_size, shares))
    return size, share // size


def _capped(size: int, batch: int, shares: int) -> str:
    ranks = f", shared by {shares} data ranks" if shares > 1 else ""
    return (
        f"larger ones were not tried: trainer.global_batch_size={batch}{ranks} is the limit. To try up to {4 * size}: "
        f"trainer.global_batch_size={4 * batch}"
    )


def _try(options: argparse.Namespace, size: int) -> int:
    """Train two steps with micro-batches of ``size``; if they do not fit, raise the error that accelerate expects."""
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
        composed = _silent(options, changes)
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


def _silent(options: argparse.Namespace, changes: list[str]) -> Composed:
    """The recipe of a try without callbacks that only show or write: a try prints nothing and writes no files."""
    given = [*options.overrides, *changes, "run.log_level=error", "run.log_level_replica=error"]
    callbacks = compose(options.recipe, given, options.recipe_dir).raw.get("callbacks") or {}
    dropped = [f"~callbacks.{name}" for name, made in callbacks.items() if _only_shows(made)]
    return compose(options.recipe, [*given, *dropped], options.recipe_dir)


def _only_shows(callback: Any) -> bool:
    module, _, _ = str(callback.get("_target_", "")).rpartition(".")
    return module.startswith("trireme.trainer.callbacks.") and module.rpartition(".")[2] not in ACTING


def _does_not_run(size: int) -> int:
    """Skip a size that the plan cannot run: a pipeline, for example, needs several micro-batches."""
    print(f"micro-batches of {size}: not with this plan", flush=True)
    raise RuntimeError("CUDA out of memory.")
