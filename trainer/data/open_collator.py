"""Open a recipe's collator and check its contract: its arguments at once, its results at the first batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import Problem, UserError
from ...parallel.micro_batch import MicroBatch, StepBatch
from ..component import Component, instantiate, locate
from ..component_errors import CONSTRUCTOR, component_errors
from ..target_kind import not_made_for
from .base_collator import IGNORE, Collator, Sample

CONTRACT = "see docs/extending.md: a collator gives a list of MicroBatch when called with a step's samples, and has "
CONTRACT += "micro_batch(samples)"


def open_collator(component: Component, given: Mapping[str, Any], next_tokens: bool = False) -> Collator:
    """The collator that ``component`` names.

    Args:
        given: values of the engine by name; the constructor gets those that it takes.
        next_tokens: whether labels are the tokens that follow, which a collator must shift.

    Raises:
        UserError: the collator does not keep its contract.
    """
    if problems := collator_problems(component):
        raise UserError(*problems)
    target = locate(component["_target_"])
    with component_errors("collator", target, CONSTRUCTOR):
        collator = instantiate(component, **taken(target, given))
    if component["_target_"].startswith("trireme."):
        return collator
    for method in ("__call__", "micro_batch"):
        if not callable(getattr(collator, method, None)):
            raise UserError(_wrong(component["_target_"], f"has no method {method}"))
    return CheckedCollator(collator, component["_target_"], given["micro_batch_size"], next_tokens)


def collator_problems(component: Component) -> list[Problem]:
    """The problem of a component that is no collator."""
    try:
        target = locate(component["_target_"])
        if found := not_made_for(target, "collator", ["micro_batch"], "Collator"):
            return [Problem("collator._target_", *found, component["_target_"])]
    except (ImportError, TypeError, ValueError):  # reported by the check of components
        return []
    return []


def taken(target: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of ``given`` that the constructor or function ``target`` takes."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # there is no signature
        return {}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(given)
    return {name: value for name, value in given.items() if name in parameters}


def refuse_unknown_tokens(batch: StepBatch, model: Any, component: Component | None) -> None:
    """Hold the first batch of a collator of one's own to the model's vocabulary; a GPU would only tell that some
    assertion failed.

    Raises:
        UserError: a token has no embedding.
    """
    if component is None or component["_target_"].startswith("trireme."):
        return
    tokens = [micro.inputs["input_ids"] for micro in batch.micro_batches if "input_ids" in micro.inputs]
    most = max((int(rows.max()) for rows in tokens if rows.numel()), default=0)
    known = model.get_input_embeddings().num_embeddings if tokens else 0
    if tokens and most >= known:
        raise UserError(_wrong(component["_target_"], f"gives the token {most}, but the model has {known} embeddings"))


class CheckedCollator(Collator):
    """Calls a user's collator, and checks its first results."""

    def __init__(self, collator: Any, name: str, micro_batch_size: int, next_tokens: bool = True) -> None:
        self.collator, self.name, self.micro_batch_size = collator, name, micro_batch_size
        self.next_tokens = next_tokens
        self.seen: set[str] = set()

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        with component_errors("collator", self.collator, "a call"):
            micro_batches = self.collator(samples)
        if self._first("a call"):
            self._check_step(micro_batches, len(samples))
        return micro_batches

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        with component_errors("collator", self.collator, "micro_batch"):
            micro = self.collator.micro_batch(samples)
        if self._first("micro_batch"):
            self._check(micro, "micro_batch", len(samples))
        return micro

    def _first(self, method: str) -> bool:
        first = method not in self.seen
        self.seen.add(method)
        return first

    def _check_step(self, micro_batches: Any, samples: int) -> None:
        if not isinstance(micro_batches, list):
            self._refuse(f"gives {type(micro_batches).__name__} when it is called, not a list of MicroBatch")
        for micro in micro_batches:
            self._check(micro, "a call", self.micro_batch_size)
        rows = sum(micro.rows for micro in micro_batches)
        if rows != samples:
            self._refuse(f"gives {rows} rows for {samples} samples")

    def _check(self, micro: Any, method: str, rows: int) -> None:
        if not isinstance(micro, MicroBatch):
            self._refuse(
                f"gives {type(micro).__name__} by {method}, not a MicroBatch (inputs, targets, samples, length)"
            )
        for part in ("inputs", "targets"):
            for name, value in getattr(micro, part).items():
                for leaf in _leaves(value):
                    self._check_rows(leaf, name, method, rows)
        if not isinstance(micro.samples, Tensor) or micro.samples.shape != (rows,):
            self._refuse(f"gives samples that are not {rows} positions by {method}")
        self._check_tokens(micro, method)

    def _check_rows(self, value: Any, name: str, method: str, rows: int) -> None:
        if not isinstance(value, Tensor):
            self._refuse(f"gives {type(value).__name__} as {name} by {method}, not a tensor")
        elif not value.ndim or len(value) != rows:
            self._refuse(f"gives {name} of shape {tuple(value.shape)} by {method}, not {rows} rows")

    def _check_tokens(self, micro: MicroBatch, method: str) -> None:
        """Tokens and their labels: whole numbers, and labels shifted to the positions that predict them."""
        tokens, labels = micro.inputs.get("input_ids"), micro.targets.get("labels")
        for name, value in (("input_ids", tokens), ("labels", labels)):
            if isinstance(value, Tensor) and value.ndim == 2 and value.dtype != torch.int64:
                self._refuse(f"gives {name} of {value.dtype} by {method}, not torch.int64")
        if isinstance(tokens, Tensor) and tokens.numel() and int(tokens.min()) < 0:
            self._refuse(f"gives the token {int(tokens.min())} by {method}: tokens are counted from 0")
        if not self.next_tokens or not isinstance(tokens, Tensor) or not isinstance(labels, Tensor):
            return
        if tokens.shape != labels.shape or bool((tokens == tokens[:, :1]).all()):  # one repeated token tells nothing
            return
        counted = labels != IGNORE
        alike = int((counted & (labels == tokens)).sum())
        if int(counted.sum()) > 8 and alike == int(counted.sum()):
            self._refuse(
                f"gives labels by {method} that stand beside their tokens; in a micro-batch each stands at "
                "the position that predicts it (trireme.models.loss.next_token_labels shifts them)"
            )

    def _refuse(self, why: str) -> None:
        raise UserError(_wrong(self.name, why))


def _leaves(tree: Any) -> Iterator[Any]:
    """All that is in dicts, and in lists that hold tensors."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, list | tuple) and any(isinstance(item, Tensor | Mapping) for item in tree):
        for item in tree:
            yield from _leaves(item)
    else:
        yield tree


def _wrong(name: str, why: str) -> Problem:
    return Problem("collator", why, CONTRACT, name)
