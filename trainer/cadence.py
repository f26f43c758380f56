"""Decide at which steps a repeated action is due (every N steps, or at the end of each pass over the data), and at
which step a run ends.

The recipe keys ``trainer.log_every``, ``trainer.eval_every`` and ``checkpoint.every`` are set in this way. A pass ends
with the step that reaches its last sample; the same step may also hold the first samples of the next pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from .trainer_state import TrainerState

if TYPE_CHECKING:
    from .settings import TrainerConfig

Every = int | Literal["epoch"]
"""Number of steps, or ``epoch``."""


def ends_pass(samples: int, batch: int, train_size: int | None) -> bool:
    """Whether a step ends a pass.

    Args:
        samples: samples consumed, those of the step included.
        batch: samples of the step.
        train_size: samples of a pass; None for a stream, which has none.
    """
    return bool(train_size) and samples // train_size > (samples - batch) // train_size  # type: ignore[operator]


def due(every: Every | None, state: TrainerState, batch: int) -> bool:
    """Whether a cadence is due after the step that ``state`` already counts, which had ``batch`` samples."""
    if every == "epoch":
        return ends_pass(state.samples, batch, state.train_size)
    return bool(every) and state.step % every == 0


def last_step(state: TrainerState, settings: TrainerConfig) -> int:
    """Step that ends the run: ``max_steps``, or an earlier one if passes were ended early and the recipe counts in
    passes (``trainer.epochs``)."""
    if not state.skipped or settings.epochs is None:
        return state.max_steps
    return settings.total_steps(state.train_size, state.batch["step"], state.batch["samples"] + state.skipped)


def past_delay(every: Every | None, delay: int, state: TrainerState) -> bool:
    """Whether ``trainer.eval_delay`` is over: a number of steps, or of passes if evaluations follow passes."""
    return (state.epoch or 0) >= delay if every == "epoch" else state.step >= delay
