"""Wrap a recipe's task, which computes loss and metrics, so that its exceptions and wrong return values are reported as
errors of the key ``task``, before the training loop fails on them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...errors import Problem, UserError
from ...models.facts import Facts
from ...models.heads import HEADS
from ..component_errors import component_errors
from ..records import plain
from .task import Sums, Task, own_steps

if TYPE_CHECKING:
    from ...models.head_loss import Asked


class CheckedTask(Task):
    """Calls the recipe's task, and turns its exceptions and wrong return values into problems of the key ``task``."""

    def __init__(self, task: Any) -> None:
        missing = [name for name in ("loss", "evaluate", "metrics") if not callable(getattr(task, name, None))]
        if missing:
            fix = "derive it from trireme.trainer.tasks.task.Task; docs/extending.md has an example"
            why = f"{type(task).__name__} is not a task: it has no {' and no '.join(missing)}"
            raise UserError(Problem("task", why, fix))
        self.task, self.head = task, getattr(task, "head", None)  # type: ignore[misc]
        self.coupled = bool(getattr(task, "coupled", False))  # type: ignore[misc]
        self.loss_unit = getattr(task, "loss_unit", Task.loss_unit)  # type: ignore[misc]
        self.samples = getattr(task, "samples", None)  # type: ignore[misc]
        self.writes = bool(getattr(task, "writes", False))  # type: ignore[misc]
        self.scores_records = bool(getattr(task, "scores_records", False))  # type: ignore[misc]
        self.collator = getattr(task, "collator", Task.collator)  # type: ignore[misc]
        self.step_metrics = tuple(getattr(task, "step_metrics", ()))  # type: ignore[misc]
        if self.head not in HEADS:
            fix = f"write one of {', '.join(HEADS)} as head in the class"
            raise UserError(Problem("task", f"{type(task).__name__} names a head that no model has", fix, self.head))

        self.steps = own_steps(task)
        """Names of the methods by which the task calls the model itself."""
        self._sums: dict[str, torch.Size] = {}
        """Shape of each sum that ``evaluate`` has given first."""
        self._seen: set[str] = set()
        """Methods whose first result was looked at."""

    def configure(self, processor: Any, facts: Facts) -> None:
        if hasattr(self.task, "configure"):
            with component_errors("task", self.task, "configure"):
                self.task.configure(processor, facts)

    def count(self, targets: dict[str, Any]) -> int:
        if not hasattr(self.task, "count"):
            return super().count(targets)
        with component_errors("task", self.task, "count"):
            count = self.task.count(targets)
        if not isinstance(count, int) or isinstance(count, bool):
            raise self._wrong("count", count, "a whole number", "return the number of labels, as an int")
        if count < 0:
            why = f"{self._name('count')} returns {count}, and there are no fewer than 0 labels"
            raise UserError(Problem("task", why, "return the number of labels of the micro-batch"))
        return count

    def head_gives_losses(self) -> bool:
        with component_errors("task", self.task, "head_gives_losses"):
            return bool(self._own("head_gives_losses")())

    def ask(self, targets: dict[str, Any], training: bool) -> Asked | None:
        with component_errors("task", self.task, "ask"):
            return self.task.ask(targets, training)

    def features(self, outputs: Any) -> dict[str, Tensor]:
        with component_errors("task", self.task, "features"):
            return self.task.features(outputs)

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        with component_errors("task", self.task, "loss"):
            loss = self.task.loss(outputs, targets)
        return self._checked_loss(loss, "loss", _needs_gradients(outputs))

    def step(self, model: Any, inputs: dict[str, Any], targets: dict[str, Any]) -> Tensor:
        with component_errors("task", self.task, "step"):
            loss = self.task.step(model, inputs, targets)
        return self._checked_loss(loss, "step", True)

    def evaluation_step(self, model: Any, inputs: dict[str, Any], targets: dict[str, Any]) -> Any:
        with component_errors("task", self.task, "evaluation_step"):
            return self.task.evaluation_step(model, inputs, targets)

    def _checked_loss(self, loss: Any, method: str, needs_gradients: bool) -> Tensor:
        if not _is_scalar(loss):
            fix = "return the sum of the label losses of the micro-batch, a scalar that depends on the outputs"
            raise self._wrong(method, loss, "one floating-point scalar (a tensor)", fix)
        if loss.dtype.itemsize < 4:
            fix = "compute it from logits.float(): in 16 bits a sum over many labels loses digits, or overflows"
            raise self._wrong(method, loss, "one in fp32", fix)
        if torch.is_grad_enabled() and not loss.requires_grad and needs_gradients:
            fix = "compute it from the model's outputs, without detach(), item() or no_grad()"
            raise self._wrong(method, loss, "one that a backward pass can start from", fix)
        return loss

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        with component_errors("task", self.task, "evaluate"):
            sums = self.task.evaluate(outputs, targets)
        if not isinstance(sums, dict) or not all(isinstance(value, Tensor) for value in sums.values()):
            fix = 'return sums over the micro-batch: {"loss": ..., "labels": ...}'
            raise self._wrong("evaluate", sums, "a dict of tensors", fix)
        shapes = {name: value.shape for name, value in sums.items()}
        self._sums = self._sums or shapes
        if shapes != self._sums:
            fix = "return the same sums for every micro-batch, each of one shape, such as a number per label"
            raise self._wrong(
                "evaluate", sums, f"sums like those of the first micro-batch ({_shapes(self._sums)})", fix
            )
        return sums

    def metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        with component_errors("task", self.task, "metrics"):
            metrics = self.task.metrics(sums)
        numbers = isinstance(metrics, dict) and all(isinstance(value, int | float) for value in metrics.values())
        if not numbers or "loss" not in metrics:
            fix = 'return numbers by name, "loss" among them: {"loss": sums["loss"] / sums["labels"]}'
            raise self._wrong("metrics", metrics, "a dict of numbers with loss among them", fix)
        return metrics

    def prompt(self, inputs: dict[str, Any], targets: dict[str, Any]) -> dict[str, Any]:
        with component_errors("task", self.task, "prompt"):
            return self._own("prompt")(inputs, targets)

    def records(self, outputs: Any, targets: dict[str, Any]) -> dict[str, Any]:
        with component_errors("task", self.task, "records"):
            records = self._own("records")(outputs, targets)
        if not isinstance(records, dict) or not all(hasattr(value, "__len__") for value in records.values()):
            fix = "return small tensors by name, with a row per sample"
            raise self._wrong("records", records, "a dict of tensors or lists", fix)
        rows = rows_of(targets)
        for name, values in records.items():
            if rows is not None and len(values) != rows:
                fix = "return a value for every sample, also for those without targets; the engine drops these"
                raise self._wrong("records", {name: values}, f"{rows} rows for {rows} samples", fix)
        if self._first("records"):
            _refuse_no_json(self._name("records"), {name: plain(values) for name, values in records.items()})
        return records

    def prediction(self, record: dict[str, Any], facts: Facts, tokenizer: Any) -> dict[str, Any]:
        with component_errors("task", self.task, "prediction"):
            found = self._own("prediction")(record, facts, tokenizer)
        if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
            raise self._wrong("prediction", found, "a dict by name", "return what a row of the file holds, by column")
        if self._first("prediction"):
            _refuse_no_json(self._name("prediction"), found)
        return found

    def record_metrics(self, records: Iterator[dict[str, Any]]) -> dict[str, float]:
        with component_errors("task", self.task, "record_metrics"):
            metrics = self._own("record_metrics")(records)
        if not isinstance(metrics, dict) or not all(isinstance(value, int | float) for value in metrics.values()):
            fix = 'return numbers by name: {"f1": 0.5}'
            raise self._wrong("record_metrics", metrics, "a dict of numbers", fix)
        return metrics

    def _own(self, method: str) -> Any:
        """The method of the recipe's task, or the usual one if it has none."""
        return getattr(self.task, method, None) or getattr(super(), method)

    def _wrong(self, method: str, value: Any, wanted: str, fix: str) -> UserError:
        return UserError(Problem("task", f"{self._name(method)} returns {_kind(value)}, not {wanted}", fix))

    def _name(self, method: str) -> str:
        return f"{type(self.task).__module__}.{type(self.task).__qualname__}.{method}"

    def _first(self, method: str) -> bool:
        first = method not in self._seen
        self._seen.add(method)
        return first


def rows_of(tree: Any) -> int | None:
    """Length of the first dimension of a tree of tensors; None if it holds none."""
    if isinstance(tree, Tensor):
        return len(tree) if tree.ndim else None
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, list | tuple) else ()
    return next((rows for part in parts if (rows := rows_of(part)) is not None), None)


def _refuse_no_json(name: str, value: Any) -> None:
    try:
        json.dumps(value)
    except (TypeError, ValueError) as error:
        fix = "return numbers, texts, lists and dicts; turn tensors and arrays into lists (tolist())"
        raise UserError(Problem("task", f"{name} returns what a file cannot hold: {error}", fix)) from None


def _shapes(sums: Mapping[str, torch.Size]) -> str:
    return ", ".join(f"{name} of shape {tuple(shape)}" for name, shape in sums.items())


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()


def _needs_gradients(outputs: Any) -> bool:
    values = outputs.values() if isinstance(outputs, Mapping) else [outputs]
    return any(isinstance(value, Tensor) and value.requires_grad for value in values)


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and type {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        return "a dict of " + (", ".join(f"{key}: {_kind(item)}" for key, item in value.items()) or "nothing")
    return "None" if value is None else f"a {type(value).__name__}"
