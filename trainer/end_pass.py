"""End a pass (epoch) over the data before its last sample, when a callback asks for it (``control.end_pass``)."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from ..errors import Problem, UserError
from .cadence import ends_pass, last_step
from .shared_requests import agree

if TYPE_CHECKING:
    from .loop import Trainer

log = logging.getLogger("trireme.trainer")


def end_pass(trainer: Trainer) -> None:
    """Skip the rest of this pass over the data, and run the callbacks' ``on_epoch_end``; a collective call. Nothing is
    done if this step has ended the pass anyway.

    With ``trainer.epochs`` the run becomes shorter by the skipped samples; schedules keep their planned length.

    Raises:
        UserError: the data have no passes.
    """
    state, settings = trainer.state, trainer.settings
    if state.train_size is None:
        why = "asks to end a pass over the data (control.end_pass), and a stream has none that is known"
        raise UserError(Problem("callbacks", why, "ask it to stop (control.request_stop), or set data.streaming=false"))
    if ends_pass(state.samples, settings.global_batch_size, state.train_size):
        return
    left = -state.samples % state.train_size
    state.samples, state.skipped = state.samples + left, state.skipped + left
    state.data = trainer.batches.position()
    trainer.batches.move()
    log.info("pass %d ends at step %d, %d samples early", state.samples // state.train_size, state.step, left)
    trainer.emit("on_epoch_end")
    if state.step >= (last := last_step(state, settings)):
        trainer.control.request_stop(f"all {last} steps are done")
    agree(trainer)  # on what callbacks have asked for at the end of the pass
