"""Flow: turns the numbers of the recipe (log, evaluate, save, stop) into requests to the loop.

It is the only callback that knows the calendar of a run, so it stands first: callbacks after it see in
``on_step_end`` whether this step is logged, evaluated and saved. Requests are flags that the loop looks at once per
step, in the order log, evaluate, save; asking twice (a regular save that is also the last one) still acts once.

Only step 1 and the step at which the run leaves are logged beside the regular ones, and the evaluation at the end
belongs to the end of *training* (``max_steps``): leaving early at ``stop_at`` must not show early stopping or
best-model keeping a value that the uninterrupted run never sees.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from .callback import Callback, Metrics

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..trainer_state import Control, TrainerState


class Flow(Callback):
    """Follows ``trainer.{log_every,eval_every,eval_at_end,max_steps,stop_at}`` and ``checkpoint.{every,at_end}``."""

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        settings, checkpoints, step = trainer.settings, trainer.checkpoints, state.step
        if step >= state.max_steps:
            control.request_stop(f"all {state.max_steps} steps are done")
        elif state.stop_at and step >= state.stop_at:
            control.request_stop(f"leaving at trainer.stop_at={state.stop_at} of {state.max_steps} steps")

        control.log |= _due(step, settings.log_every) or step == 1 or control.stop
        if trainer.corpus.has_held_out:
            control.evaluate |= _due(step, settings.eval_every) or (settings.eval_at_end and step >= state.max_steps)
        control.save |= _due(step, checkpoints.every) or (checkpoints.at_end and control.stop)

    def on_log(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        """An evaluation may have ended training (early stopping): then this step is the last, and is saved."""
        control.save |= control.stop and trainer.checkpoints.at_end


def _due(step: int, every: int | None) -> bool:
    return bool(every) and step % every == 0
