"""The one clock for rates: how long the steps since the previous training line took, and what was trained in them."""

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
    """What has been done since the previous training line."""

    seconds: float
    """Time of training; never zero."""
    steps: int
    samples: int
    tokens: int


class TrainingClock:
    """Runs while steps are taken. Evaluations and saves are not training: the clock stands still in them."""

    def __init__(self) -> None:
        self._since = 0.0
        self._counts = (0, 0, 0)

    def restart(self, state: TrainerState) -> None:
        """Count from here on: a training line was written, or training goes on from another step."""
        self._since, self._counts = time.perf_counter(), (state.step, state.samples, state.tokens)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the clock stands still."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - began

    def elapsed(self, state: TrainerState) -> Elapsed:
        """Since ``restart``."""
        seconds = time.perf_counter() - self._since
        steps, samples, tokens = self._counts
        return Elapsed(max(seconds, 1e-9), state.step - steps, state.samples - samples, state.tokens - tokens)
