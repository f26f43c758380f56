"""Tests that the clock behind reported throughput counts training time only, and leaves out evaluations and saves."""

from __future__ import annotations

import time

from trireme.trainer.trainer_state import TrainerState
from trireme.trainer.training_clock import TrainingClock


def test_a_pause_is_no_training_time() -> None:
    clock, state = TrainingClock(), TrainerState(max_steps=10)
    clock.restart(state)
    with clock.paused():
        time.sleep(0.5)
    time.sleep(0.05)
    state.step, state.samples, state.tokens = 2, 16, 2000
    elapsed = clock.elapsed(state)
    assert 0.05 <= elapsed.seconds < 0.5, "the pause was counted"
    assert (elapsed.steps, elapsed.samples, elapsed.tokens) == (2, 16, 2000)


def test_a_line_begins_a_new_count() -> None:
    clock, state = TrainingClock(), TrainerState(max_steps=10, step=3, samples=24, tokens=300)
    clock.restart(state)
    assert clock.elapsed(state).tokens == 0 and clock.elapsed(state).seconds > 0
    state.tokens += 100
    assert clock.elapsed(state).tokens == 100
    clock.restart(state)
    assert clock.elapsed(state).tokens == 0
