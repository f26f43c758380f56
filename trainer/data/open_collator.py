"""Open a recipe's collator and check its contract: its arguments at once, its results at the first batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import Problem, UserError
from ...parallel.strategy import MicroBatch, StepBatch
from ..component import Component, instantiate, locate
from ..component_errors import CONSTRUCTOR, component_errors
from ..target_kind import not_made_for
from .collator import IGNORE, CausalLMCollator, Sample
from .loader import Collator

DEFAULT = f"{CausalLMCollator.__module__}.{CausalLMCollator.__name__}"
GIVEN = ("block_size", "pad_token_id", "micro_batch_size")
"""Arguments that the engine passes to every collator."""
CONTRACT = "see docs/extending.md: a collator is made with block_size, pad_token_id and micro_batch_size, gives a "
CONTRACT += "StepBatch when called with samples, and has micro_batch(samples)"


def open_collator(component: Component | None, **given: int) -> Collator:
    """The collator of a recipe; None takes the one for next-token prediction.

    Args:
        given: values of ``GIVEN``.

    Raises:
        UserError: the collator does not keep its contract.
    """
    component = component or {"_target_": DEFAULT}
    problems = collator_problems(component)
    if problems:
        raise UserError(*problems)
    with component_errors("collator", locate(component["_target_"]), CONSTRUCTOR):
        collator = instantiate(component, **given)
    if component["_target_"] == DEFAULT:
        return collator
    for method in ("__call__", "micro_batch"):
        if not callable(getattr(collator, method, None)):
            raise UserError(_wrong(component["_target_"], f"has no method {method}"))
    return CheckedCollator(collator, component["_target_"], given["micro_batch_size"])


def collator_problems(component: Component) -> list[Problem]:
    """The problem of a collator that is none, or does not take the engine's arguments."""
    try:
        target = locate(component["_target_"])
        if found := not_made_for(target, "collator", ["micro_batch"], "Collator"):
            return [Problem("collator._target_", *found, component["_target_"])]
        parameters = inspect.signature(target).parameters
    except (ImportError, TypeError, ValueError):  # reported by the check of components, or there is no signature
        return []
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return []
    missing = [name for name in GIVEN if name not in parameters]
    return [_wrong(component["_target_"], f"does not take {' and '.join(missing)}")] if missing else []


def refuse_unknown_tokens(batch: StepBatch, model: Any, component: Component | None) -> None:
    """Hold the first batch of a collator of one's own to the model's vocabulary; a GPU would only tell that some
    assertion failed.

    Raises:
        UserError: a token has no embedding.
    """
    if component is None or component["_target_"] == DEFAULT:
        return
    known = model.get_input_embeddings().num_embeddings
    most = max(
        (int(micro["input_ids"].max()) for micro in batch.micro_batches if micro["input_ids"].numel()), default=0
    )
    if most >= known:
        raise UserError(_wrong(component["_target_"], f"gives the token {most}, but the model has {known} embeddings"))


class CheckedCollator:
    """Calls a user's collator, and checks its first results."""

    def __init__(self, collator: Collator, name: str, micro_batch_size: int) -> None:
        self.collator, self.name, self.micro_batch_size = collator, name, micro_batch_size
        self.seen: set[str] = set()

    def __call__(self, samples: Sequence[Sample]) -> StepBatch:
        with component_errors("collator", self.collator, "a call"):
            batch = self.collator(samples)
        if self._first("a call"):
            self._check_step(batch, len(samples))
        return batch

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        with component_errors("collator", self.collator, "micro_batch"):
            batch = self.collator.micro_batch(samples)
        if self._first("micro_batch"):
            self._check(batch, "micro_batch", len(samples))
        return batch

    def _first(self, method: str) -> bool:
        first = method not in self.seen
        self.seen.add(method)
        return first

    def _check_step(self, batch: Any, samples: int) -> None:
        if not isinstance(batch, StepBatch):
            self._refuse(f"gives {type(batch).__name__} when it is called, not a StepBatch")
        if not isinstance(batch.micro_batches, list):
            self._refuse(f"gives micro_batches of type {type(batch.micro_batches).__name__}, not a list")
        for micro in batch.micro_batches:
            self._check(micro, "a call", self.micro_batch_size)
        rows = sum(len(micro["input_ids"]) for micro in batch.micro_batches)
        if rows != samples:
            self._refuse(f"gives {rows} rows for {samples} samples")
        counted = sum(int((micro["labels"][:, 1:] != IGNORE).sum()) for micro in batch.micro_batches)
        if batch.labels != counted:
            self._refuse(
                f"counts {batch.labels} labels, but there are {counted} (those that are not {IGNORE}, the first "
                "position of a row left out): the loss is divided by this number"
            )

    def _check(self, batch: Any, method: str, rows: int) -> None:
        if not isinstance(batch, Mapping):
            self._refuse(f"gives {type(batch).__name__} by {method}, not a dict of tensors")
        for name in ("input_ids", "labels"):
            value = batch.get(name)
            if not isinstance(value, Tensor):
                found = "nothing" if value is None else type(value).__name__
                self._refuse(f"gives {found} as {name} by {method}, not a tensor")
            elif value.dtype != torch.int64:
                self._refuse(f"gives {name} of {value.dtype} by {method}, not torch.int64")
        for name, value in batch.items():
            if not isinstance(value, Tensor):
                self._refuse(f"gives {type(value).__name__} as {name} by {method}, not a tensor")
        if batch["input_ids"].numel() and int(batch["input_ids"].min()) < 0:
            self._refuse(f"gives the token {int(batch['input_ids'].min())} by {method}: tokens are counted from 0")
        shape, labels = tuple(batch["input_ids"].shape), tuple(batch["labels"].shape)
        if len(shape) != 2 or shape[0] != rows:
            self._refuse(f"gives input_ids of shape {shape} by {method}, not {rows} rows of tokens")
        if labels != shape:
            self._refuse(f"gives labels of shape {labels} for input_ids of shape {shape} by {method}")

    def _refuse(self, why: str) -> None:
        raise UserError(_wrong(self.name, why))


def _wrong(name: str, why: str) -> Problem:
    return Problem("collator", why, CONTRACT, name)
