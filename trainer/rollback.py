"""Return a run to its last checkpoint when a callback asks for it, for example after a NaN loss, and continue with new
samples instead of the same ones.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Problem, UserError
from .checkpoint.load.open_source import open_source
from .resume import load

if TYPE_CHECKING:
    from .loop import Trainer

log = logging.getLogger("trireme.trainer")


def roll_back(trainer: Trainer) -> Path:
    """Restore the newest complete checkpoint, but not its position in the data; a collective call.

    Callbacks are closed, get their saved state back (``Callback.load_state_dict``) and begin again. A callback that
    must remember later events keeps them across ``load_state_dict`` itself.

    Returns:
        The checkpoint.

    Raises:
        UserError: this run has no complete checkpoint yet.
    """
    left, samples, position = trainer.state.step, trainer.state.samples, trainer.batches.position()
    checkpoint = trainer.store.find("auto")
    if checkpoint is None:
        raise UserError(
            Problem(
                "checkpoint.every",
                f"the run must go back from step {left}, but has no checkpoint yet",
                "save more often, lower the learning rate, or warm up longer",
                trainer.checkpoints.every,
            )
        )
    for callback in trainer.callbacks.values():
        callback.close()
    load(trainer, open_source(checkpoint))
    trainer.state.samples, trainer.state.data = samples, position
    trainer.extra_metrics.clear()
    log.warning(
        "went back from step %d to step %d; training continues with sample %d of the stream",
        left,
        trainer.state.step,
        samples,
    )
    trainer.history.lines = [line for line in trainer.history.lines if line["step"] <= trainer.state.step]
    trainer.emit("on_train_begin")
    return checkpoint
