"""Create a recipe's collator and check it: its arguments at once, and its results at the first batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ...errors import Problem, UserError
from ...models.family import families
from ...models.heads import Head
from ...models.loss import IGNORE
from ...parallel.micro_batch import MicroBatch
from ..component import Component, instantiate, locate
from ..component_errors import CONSTRUCTOR, component_errors
from ..target_kind import not_made_for
from .base_collator import Collator, Sample, is_ours, wrong_collator
from .text_config import USUAL_COLLATOR
from .token_checks import PASSED, wrong_tokens

NO_HEAD = Head("")
"""Placeholder for an unknown output layer."""


def open_collator(
    component: Component, given: Mapping[str, Any], head: Head = NO_HEAD, samples: object = None
) -> Collator:
    """The collator that ``component`` names.

    Args:
        given: values of the engine by name; the constructor gets those that it takes.
        head: the task's output layer, which tells what labels are.
        samples: the object that makes the samples; None if there is none.

    Raises:
        UserError: the collator does not keep its contract.
    """
    if problems := collator_problems(component):
        raise UserError(*problems)
    target = locate(component["_target_"])
    with component_errors("collator", target, CONSTRUCTOR):
        collator = instantiate(component, **taken(target, given))
    ours = component["_target_"].startswith("trireme.")
    if ours and (samples is None or is_ours(samples)):
        return collator
    for method in ("__call__", "micro_batch"):
        if not callable(getattr(collator, method, None)):
            raise UserError(wrong_collator(component["_target_"], f"has no method {method}"))
    names = given["facts"].labels if head.labelled else ()
    maker = component["_target_"] if not ours else f"{type(samples).__module__}.{type(samples).__qualname__}"
    return CheckedCollator(collator, maker, given["micro_batch_size"], head.next_tokens, names)


def usual_collator(task: Any, model: Any) -> str:
    """Dotted path of the collator that a task and a model have, where the recipe names none.

    Args:
        task: a task, or a class of one.
        model: the model's transformers configuration, or None.
    """
    kind = getattr(model, "model_type", None)
    own = next((family.collator for family in families().values() if family.model_type == kind), "")
    return own if own and task.collator == USUAL_COLLATOR else task.collator


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
    """The values of ``given`` that the constructor or function ``target`` takes; partials are called for theirs."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # there is no signature
        return {}
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    return {
        name: value() if isinstance(value, partial) else value
        for name, value in given.items()
        if takes_all or name in parameters
    }


class CheckedCollator(Collator):
    """Calls a user's collator, and checks its first results."""

    def __init__(
        self, collator: Any, name: str, micro_batch_size: int, next_tokens: bool = True, labels: Sequence[str] = ()
    ) -> None:
        self.collator, self.name, self.micro_batch_size = collator, name, micro_batch_size
        self.next_tokens, self.labels = next_tokens, labels
        self.seen: set[str] = set()
        self.read: tuple[str, set[str]] | None = None
        """First method that was checked, and the inputs in its result that a model reads."""

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        with component_errors("collator", self.collator, "__call__"):
            micro_batches = self.collator(samples)
        if self._first("__call__"):
            self._check_step(micro_batches, len(samples))
        for micro in micro_batches if self.labels else ():
            self._check_labels(micro)
        return micro_batches

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        with component_errors("collator", self.collator, "micro_batch"):
            micro = self.collator.micro_batch(samples)
        if self._first("micro_batch"):
            self._check(micro, "micro_batch", len(samples))
        self._check_labels(micro)
        return micro

    def _check_labels(self, micro: MicroBatch) -> None:
        """Refuse label numbers that are out of range: a GPU would only report that some assertion failed."""
        labels = micro.targets.get("labels")
        if not self.labels or not isinstance(labels, Tensor) or labels.is_floating_point() or not labels.numel():
            return
        for number in (int(labels.max()), int(labels.masked_fill(labels == IGNORE, 0).min())):
            if not 0 <= number < len(self.labels) and number != IGNORE:
                known = f"there are {len(self.labels)}: {', '.join(self.labels[:10])}"
                self._refuse(f"gives the label {number}, but labels are numbered from 0, and {known}")

    def _first(self, method: str) -> bool:
        first = method not in self.seen
        self.seen.add(method)
        return first

    def _check_step(self, micro_batches: Any, samples: int) -> None:
        if not isinstance(micro_batches, list):
            self._refuse(f"gives {type(micro_batches).__name__} when it is called, not a list of MicroBatch")
        for micro in micro_batches:
            self._check(micro, "__call__", self.micro_batch_size)
        given = sum(micro.rows // micro.per_sample for micro in micro_batches)
        if given != samples:
            self._refuse(f"gives {given} rows for {samples} samples")

    def _check(self, micro: Any, method: str, rows: int) -> None:
        if not isinstance(micro, MicroBatch):
            self._refuse(
                f"gives {type(micro).__name__} from {method}, not a MicroBatch (inputs, targets, samples, length)"
            )
        read = PASSED & micro.inputs.keys()
        first, before = self.read = self.read or (method, read)
        if read != before:  # one serves training, the other evaluations
            shown, had = (", ".join(sorted(names)) or "none of the model's inputs" for names in (read, before))
            self._refuse(f"gives {shown} from {method}, but {had} from {first}")
        rows *= micro.per_sample
        for part in ("inputs", "targets"):
            for name, value in getattr(micro, part).items():
                for leaf in _leaves(value):
                    self._check_rows(leaf, name, method, rows)
        if not isinstance(micro.samples, Tensor) or micro.samples.shape != (rows,):
            self._refuse(f"gives samples that are not {rows} positions from {method}")
        for why in wrong_tokens(micro, method, self.next_tokens):
            self._refuse(why)

    def _check_rows(self, value: Any, name: str, method: str, rows: int) -> None:
        if not isinstance(value, Tensor):
            self._refuse(f"gives {type(value).__name__} as {name} from {method}, not a tensor")
        elif not value.ndim or len(value) != rows:
            self._refuse(f"gives {name} of shape {tuple(value.shape)} from {method}, not {rows} rows")

    def _refuse(self, why: str) -> None:
        raise UserError(wrong_collator(self.name, why))


def _leaves(tree: Any) -> Iterator[Any]:
    """The values in a tree of dicts, and of lists that hold tensors."""
    if isinstance(tree, Mapping):
        for value in tree.values():
            yield from _leaves(value)
    elif isinstance(tree, list | tuple) and any(isinstance(item, Tensor | Mapping) for item in tree):
        for item in tree:
            yield from _leaves(item)
    else:
        yield tree
