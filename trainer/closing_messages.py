"""Log the closing messages of a run (its result, where its files are, useful commands), and write its summary file."""

from __future__ import annotations

import logging
import shlex
from typing import TYPE_CHECKING

from ..models.heads import HEADS
from .checkpoint.layout import MODEL, RECIPE, complete_checkpoints, not_finite
from .generate_options import generate_options
from .summary import FILE as SUMMARY
from .summary import write_summary

if TYPE_CHECKING:
    from .loop import Trainer, TrainResult

log = logging.getLogger("trireme.trainer")
DIVERGED = (
    "the run has diverged: at step %d of %d %s. A checkpoint of this step is marked and never resumed from; "
    "lower optimizer.lr, warm up longer, or see docs/faults.md"
)
ASSETS = ("report.html", "curve.png", "samples.txt", "metrics.jsonl", SUMMARY, "log.txt")


def say_how_it_ended(trainer: Trainer, result: TrainResult, named: bool) -> None:
    """Log the last lines of a run, on rank 0.

    Args:
        named: whether the command line has named a checkpoint to resume from.
    """
    if not trainer.mesh.is_main:
        return
    if result.not_finite:
        log.error(DIVERGED, result.step, trainer.state.max_steps, result.not_finite)
    elif result.pruned:
        log.info("pruned at step %d of %d: %s", result.step, trainer.state.max_steps, result.pruned)
    elif result.interrupted:
        where = f"saved; the same command{' without --resume' if named else ''} goes on from there"
        log.info("left at step %d of %d (%s): %s", result.step, trainer.state.max_steps, result.interrupted, where)
    else:
        _compare(trainer)
        write_summary(trainer)
        _say_where(trainer)


def _compare(trainer: Trainer) -> None:
    """Log the held-out loss next to the losses of simple models, with a hint if it is worse."""
    loss = trainer.metrics.get("eval_loss")
    if loss is None:
        return
    for name, value in trainer.reference_lines.items():
        log.info("held-out loss %.4f %s; %s %.4f", loss, trainer.task.loss_unit, name, value)
        if loss > value:
            hint = (
                "; it was measured with the averaged weights, which lag behind in short runs"
                if trainer.averaged
                else ""
            )
            log.info(
                "that is worse than %s: the model predicts worse than token frequencies alone. Train longer, or try "
                "another optimizer.lr%s",
                *(name, hint),
            )


def _say_where(trainer: Trainer) -> None:
    folder = trainer.run_dir
    newest = next((path for path in complete_checkpoints(trainer.store.root) if not_finite(path) is None), None)
    there = [f"checkpoints/{newest.name}"] if newest else []
    there += [name for name in ASSETS if (folder / name).is_file()]
    log.info("everything is in %s: %s", folder, ", ".join(there))
    if newest:
        run = shlex.quote(str(folder))
        first = "next:"
        chat = trainer.recipe.data.chat is not None
        if (chat or HEADS[trainer.task.head].next_tokens) and hasattr(trainer.strategy.module, "generate"):
            options = generate_options(chat, newest / MODEL)
            log.info("next: trireme generate %s %s", run, options)
            first = "     "
        log.info("%s trireme evaluate %s", first, shlex.quote(str(folder / RECIPE)))
        beside = trainer.base is not None
        if not (beside and trainer.recipe.model.merged_adapters):  # peft has no base for these
            log.info("      trireme export %s OUT    # a folder for %s", run, "peft" if beside else "transformers")
        if beside:
            log.info("      trireme export %s OUT --merge    # one model again", run)
