"""Start ranks that load trained weights and do not train, for ``trireme evaluate`` and ``trireme predict``."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .elastic import cores_per_rank, import_ahead, launched, start_ranks
from .error_report import RanksFailed
from .rank_imports import imports_of
from .slurm.job_task import use_node_storage
from .train import checked, rank_arguments

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig
    from .composed import Composed


def with_weights(
    options: argparse.Namespace,
    go: Callable[[RecipeConfig, argparse.Namespace], None],
    entry: str,
    arguments: Sequence[str],
) -> None:
    """Call ``go`` with the recipe on every rank; ``go`` uses trained weights and trains nothing.

    Args:
        entry: module that new ranks run.
        arguments: further arguments of new ranks.
    """
    from ..trainer.run_folder import weights_at
    from .compose import compose
    from .planning import planned

    use_node_storage()
    composed = _without_averaging(compose(options.recipe, options.overrides, options.recipe_dir))
    composed = planned(composed, options.nproc, show=False)
    import_ahead(options.nproc, imports_of(composed.raw))
    recipe, ranks = checked(composed, options.nproc)
    if not launched():  # ranks do not look for the checkpoint, since it may lie on one machine only
        weights_at(recipe, options.checkpoint, options.ema)
    if launched() or ranks == 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(cores_per_rank(ranks)))
        go(recipe, options)
    else:
        weights = [*option("--checkpoint", options.checkpoint), *(["--ema"] if options.ema else [])]
        _start(ranks, [*rank_arguments(composed, options), *weights, *arguments], entry)


def _without_averaging(composed: Composed) -> Composed:
    """The recipe without its ``ema`` part: evaluation makes no averages, so the plan need not support them."""
    return replace(composed, raw={**composed.raw, "ema": None})


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print metrics, on rank 0."""
    if os.environ.get("RANK", "0") != "0":
        return
    from ..trainer.callbacks.line_text import evaluation_parts

    step = [f"step {result['step']}"] if "step" in result else []
    print(json.dumps(result) if as_json else "  ".join([*step, *evaluation_parts(result)]), flush=True)


def option(name: str, value: object) -> list[str]:
    """An option of the command line; none without a value."""
    return [name, str(value)] if value is not None else []


def _start(ranks: int, arguments: list[str], entry: str) -> None:
    with ExitStack() as stack:
        logs = tempfile.mkdtemp(prefix="trireme_ranks_")
        stack.callback(shutil.rmtree, logs, ignore_errors=True)
        try:
            start_ranks(ranks, arguments, Path(logs), entry)
        except RanksFailed:
            stack.pop_all()  # keep the log files, since the error names one of them
            raise
