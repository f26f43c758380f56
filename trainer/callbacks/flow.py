"""Flow callback: asks the training loop to log, evaluate, save and stop at the steps that the recipe sets.

It must be the first callback, so that in ``on_step_end`` all later callbacks know whether this step is logged,
evaluated and saved. Requests are flags. The training loop handles each flag once per step, in the order log, evaluate,
save; a step that is both a regular save and the last step is saved once.

Besides the regular steps, step 1 and the last step are logged. The evaluation at the end (``trainer.eval_at_end``) is
only made at ``max_steps``, not at an earlier ``stop_at``. Otherwise early stopping and best model would see a value
that an uninterrupted run never computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cadence import due, last_step, past_delay
from .callback import Callback, Metrics

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState


class Flow(Callback):
    """Follows ``trainer.{log_every,eval_every,eval_delay,eval_at_end,max_steps,stop_at}`` and
    ``checkpoint.{every,at_end}``."""

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        settings, checkpoints, step = trainer.settings, trainer.checkpoints, state.step
        last = last_step(state, settings)
        if step >= last:
            control.request_stop(f"all {last} steps are done")
        elif state.stop_at and step >= state.stop_at:
            control.request_stop(f"leaving at trainer.stop_at={state.stop_at} of {state.max_steps} steps")

        batch = settings.global_batch_size
        control.log |= due(settings.log_every, state, batch) or step == 1 or control.stop
        if trainer.corpus.has_held_out:
            regular = due(settings.eval_every, state, batch)
            control.evaluate |= regular and past_delay(settings.eval_every, settings.eval_delay, state)
            control.evaluate |= settings.eval_at_end and step >= last
        control.save |= due(checkpoints.every, state, batch) or (checkpoints.at_end and control.stop)

    def on_epoch_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        """Ask for what is due at the end of a pass, also of one that a callback has ended early."""
        self.on_step_end(trainer, state, control)

    def on_log(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        """Save the last step if an evaluation has ended training (early stopping)."""
        control.save |= control.stop and trainer.checkpoints.at_end
