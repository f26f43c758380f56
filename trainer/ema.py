"""An exponential moving average of the weights, as an option of any recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..parallel.strategy import Strategy
from .settings import EmaConfig


class Ema:
    """Averages this rank's own (possibly sharded) parameters; needs no communication."""

    def __init__(self, config: EmaConfig, strategy: Strategy) -> None:
        self.config = config
        self._live = [p.detach() for _, p in strategy.named_parameters()]
        self._names = [name for name, _ in strategy.named_parameters()]
        self._average = [p.clone() for p in self._live]

    def update(self) -> None:
        """average <- decay x average + (1 - decay) x weights."""
        torch._foreach_lerp_(self._average, self._live, 1.0 - self.config.decay)

    def tensors(self) -> dict[str, Tensor]:
        """By parameter name, sharing memory: saved from and loaded into."""
        return dict(zip(self._names, self._average, strict=True))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Swap the average into the model for the time of an evaluation."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for average, live in zip(self._average, self._live, strict=True):
            held = live.clone()
            live.copy_(average)
            average.copy_(held)
