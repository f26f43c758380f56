"""Keep an exponential moving average (EMA) of the weights, for evaluations and exports, under every plan that does not
use DeepSpeed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from ..parallel.checkpoint_state import fill, tensors_to_write
from ..parallel.clip import local
from ..parallel.strategy import CopyTensor, Read, Strategy, no_copy
from .settings import EmaConfig


class Ema:
    """Averages this rank's own (possibly sharded) parameters, without communication."""

    def __init__(self, config: EmaConfig, strategy: Strategy) -> None:
        self.config = config
        self.strategy = strategy
        # Lists, not dicts by name: a pipeline rank may hold both a parameter and its copy for another stage.
        named = list(strategy.saved_parameters())
        self._names = [name for name, _ in named]
        self._average = [p.detach().clone() for _, p in named]

    def update(self) -> None:
        """average <- decay x average + (1 - decay) x weights."""
        live = [local(p) for _, p in self.strategy.saved_parameters()]
        torch._foreach_lerp_([local(p) for p in self._average], [p.detach() for p in live], 1.0 - self.config.decay)

    def saved_tensors(self, copy: CopyTensor = no_copy) -> dict[str, Tensor]:
        """Averages that this rank writes into a checkpoint. A collective call; see ``Strategy.saved_tensors``."""
        tensors = {f"ema.{name}": tensor for name, tensor, copied in self._tensors() if not copied}
        return tensors_to_write(tensors, self.strategy.mesh, copy)

    def load(self, read: Read) -> None:
        """Load the averages from a checkpoint; a collective call."""
        for wanted in (False, True):
            fill({f"ema.{name}": tensor for name, tensor, copied in self._tensors() if copied is wanted}, read)

    def _tensors(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Triples (name in checkpoints, average, whether it is a copy that another stage saves)."""
        copies = self.strategy.copies()
        for name, tensor in zip(self._names, self._average, strict=True):
            yield self.strategy.checkpoint_name(name), tensor, name in copies

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Context in which the model has the averaged weights, for an evaluation."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        live = [local(p).detach() for _, p in self.strategy.saved_parameters()]
        for average, weight in zip((local(p) for p in self._average), live, strict=True):
            held = weight.clone()
            weight.copy_(average)
            average.copy_(held)
