"""Run the extra forward passes without gradient that preference losses need before a training step or an evaluation.

They compute two things: the log-probability of each answer under the base model, with the adapters switched off
(``task.reference=adapter_off``), and the KL divergence that KTO estimates over the whole global batch. Both use
``Strategy.evaluate``, so they work under any plan. Dropout and noise are off in these passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import Problem, UserError
from ..models.adapters import adapters_off
from ..models.low_rank import is_part
from ..parallel.micro_batch import MicroBatch, StepBatch
from ..parallel.strategy import Strategy
from .tasks.preference import Preference

REFERENCE = "reference"
BaseLogps = list[tuple[Tensor | None, Tensor | None]]
"""Log-probabilities under the base of each micro-batch, [rows, texts], and of the texts beside it; empty if unused."""
Batches = Callable[[], Iterable[MicroBatch]]
"""Gives the micro-batches of a set, the same ones at every call."""


def preference_in(task: Any) -> Preference | None:
    """The recipe's task, if it is a preference task."""
    inner = getattr(task, "task", task)  # inside of a ``CheckedTask``
    return inner if isinstance(inner, Preference) else None


def refuse_other_base(task: Any, blueprint: nn.Module) -> None:
    """Refuse to switch adapters off where something else is trained too, which has no base to go back to.

    Args:
        blueprint: the whole model on the meta device.

    Raises:
        UserError: names what is trained, such as modules that an adapter's folder trains whole.
    """
    preference = preference_in(task)
    if preference is None or preference.reference != "adapter_off":
        return
    whole = [name for name, one in blueprint.named_parameters() if one.requires_grad and not is_part(name)]
    if whole:
        why = f"compares with the model without its adapters, but {', '.join(whole[:3])} would stay changed by training"
        raise UserError(Problem("task.reference", why, "set task.reference=start", "adapter_off"))


@contextmanager
def reading(strategy: Strategy) -> Iterator[None]:
    """Context for forward passes between steps, without noise and in the precision of training."""
    precision, strategy.eval_precision = strategy.eval_precision, None
    strategy.set_training(False)
    try:
        yield
    finally:
        strategy.set_training(True)
        strategy.eval_precision = precision


class LookAhead:
    """Completes micro-batches for a task, if it needs anything. Its methods are collective calls."""

    def __init__(self, strategy: Strategy, task: Any) -> None:
        self.strategy, self.task = strategy, preference_in(task)
        self._kept: dict[str, BaseLogps] = {}
        """Results for the sets that are evaluated, by name of the set."""

    @property
    def needed(self) -> bool:
        """Whether the task needs extra passes."""
        return self.task is not None and (self.task.reference == "adapter_off" or self.task.estimates)

    def step(self, batch: StepBatch) -> None:
        """Complete the micro-batches of a step, in place."""
        if not self.needed:
            return
        with reading(self.strategy):
            logps = {"": self._base_logps(batch.micro_batches)}
            batch.micro_batches = list(self._completed({"": lambda: batch.micro_batches}, logps)[""])

    def evaluation(self, parts: Mapping[str, Batches]) -> Mapping[str, Iterable[MicroBatch]]:
        """The micro-batches of a set, completed.

        Args:
            parts: of the set, by name; log-probabilities under the base are computed once for each.
        """
        if not self.needed:
            return {name: batches() for name, batches in parts.items()}
        for name, batches in parts.items():
            if name not in self._kept:
                self._kept[name] = self._base_logps(batches())
        return self._completed(parts, self._kept)

    def _completed(
        self, parts: Mapping[str, Batches], logps: Mapping[str, BaseLogps]
    ) -> dict[str, Iterator[MicroBatch]]:
        """Micro-batches with their log-probabilities under the base, after the estimate over all parts was taken."""
        assert self.task is not None
        if self.task.estimates:
            every = (_with_logps(batches(), logps[name]) for name, batches in parts.items())
            self.task.take_estimate(self._estimated(chain.from_iterable(every)))
        return {name: _with_logps(batches(), logps[name]) for name, batches in parts.items()}

    def _base_logps(self, batches: Iterable[MicroBatch]) -> BaseLogps:
        """Log-probabilities of each micro-batch under the base; None on ranks that have no outputs."""
        assert self.task is not None
        if self.task.reference != "adapter_off":
            return []
        every = list(batches)
        with adapters_off(self.strategy.modules):
            own = self._log_probabilities(every)
            besides = [micro.beside for micro in every if micro.beside is not None]
            beside = self._log_probabilities(besides) if besides else []
        none: list[Tensor | None] = [None] * len(every)
        return list(zip(own or none, beside or none, strict=True))

    def _log_probabilities(self, batches: Iterable[MicroBatch]) -> list[Tensor]:
        found: list[Tensor] = []

        def keep(outputs: Any, micro: MicroBatch) -> dict[str, Tensor]:
            assert self.task is not None
            found.append(self.task.log_probabilities(outputs, micro.targets)[0].float())
            return {}

        self.strategy.evaluate(batches, keep)
        return found

    def _estimated(self, batches: Iterable[MicroBatch]) -> dict[str, Any]:
        assert self.task is not None
        task = self.task

        def sums(outputs: Any, micro: MicroBatch) -> dict[str, Tensor]:
            return task.estimate(outputs, micro.targets)

        return self.strategy.evaluate((micro.beside for micro in batches if micro.beside is not None), sums)


def _with_logps(batches: Iterable[MicroBatch], logps: BaseLogps) -> Iterator[MicroBatch]:
    """Micro-batches with their log-probabilities under the base."""
    for number, micro in enumerate(batches):
        own, beside = logps[number] if logps else (None, None)
        micro = micro if own is None else _with_reference(micro, own)
        if beside is not None and micro.beside is not None:
            micro = replace(micro, beside=_with_reference(micro.beside, beside))
        yield micro


def _with_reference(micro: MicroBatch, logps: Tensor) -> MicroBatch:
    return replace(micro, targets={**micro.targets, REFERENCE: logps.to(micro.samples.device, torch.float32)})
