"""Measure the time, steps, samples and tokens since metrics were last logged, to compute rates per second."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .trainer_state import TrainerState


@dataclass(frozen=True)
class Elapsed:
    """Time and amount of training since the previous training line."""

    seconds: float
    """Training time, never zero."""
    steps: int
    samples: int
    tokens: int


class TrainingClock:
    """A clock that runs during steps and is paused during evaluations and saves."""

    def __init__(self) -> None:
        self._since = 0.0
        self._counts = (0, 0, 0)

    def restart(self, state: TrainerState) -> None:
        """Start counting anew, after a training line or a change of the step (resume, rollback)."""
        self._since, self._counts = time.perf_counter(), (state.step, state.samples - state.skipped, state.tokens)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Context in which the clock is paused."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    def elapsed(self, state: TrainerState) -> Elapsed:
        """Time and counts since ``restart``."""
        seconds = time.perf_counter() - self._since
        steps, samples, tokens = self._counts
        trained = state.samples - state.skipped - samples
        return Elapsed(max(seconds, 1e-9), state.step - steps, trained, state.tokens - tokens)
