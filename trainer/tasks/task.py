"""The base class of tasks. A task chooses the model's head, and computes the loss and the metrics. Functions here also
tell properties of a recipe's task without creating it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from ...errors import Problem, UserError
from ...models.heads import USUAL
from ..component import Component, locate

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from ...models.facts import Facts
    from ...models.head_loss import Asked

Sums = dict[str, "Tensor"]
"""Sums of a micro-batch, which are added over micro-batches and ranks and then turned into metrics."""


class Task(ABC):
    """Base of all tasks. Methods return sums, since a mean would depend on how a batch is cut into micro-batches."""

    head: ClassVar[str]
    """Output layer of the model: a key of ``models/heads.HEADS``."""
    samples: ClassVar[str | None] = None
    """Dotted path of the ``Samples`` that make the task's samples of rows; None takes blocks of text."""
    collator: ClassVar[str] = "trireme.trainer.data.collator.CausalLMCollator"
    """Collator of the task, unless the recipe names another one."""
    texts: ClassVar[bool] = True
    """Whether the model reads texts, so that pretrained weights need a tokenizer beside them."""
    coupled: ClassVar[bool] = False
    """Whether the samples of a batch see each other in the loss. Then ``loss`` gets the ``features`` of all samples of
    the global batch in place of outputs, and their targets."""
    loss_unit: ClassVar[str] = "nats per token"
    """Unit of the loss, for plots and messages."""
    writes: ClassVar[bool] = False
    """Whether predictions are texts that the model writes by itself, not its answer to each token."""
    scores_records: ClassVar[bool] = False
    """Whether evaluations keep records, because metrics are computed of them (``record_metrics``)."""
    metric_names: ClassVar[tuple[str, ...] | None] = None
    """Names that ``metrics`` returns, so that unknown ones are refused before launch; None if they are not known."""
    step_metrics: ClassVar[tuple[str, ...]] = ()
    """Names in ``metric_names`` that training lines hold too, over the global batch of the logged step."""
    chats: ClassVar[bool] = False
    """Whether the samples of rows are made of conversations where ``data.chat`` is set."""

    def configure(self, processor: Any, facts: Facts) -> None:
        """Store the properties of the data that the task needs, once, before any batch.

        Args:
            processor: object that turns raw data into inputs, such as a tokenizer.
            facts: vocabulary and labels of the data.
        """
        return None

    def count(self, targets: dict[str, Any]) -> int:
        """Number of labels in the targets of a micro-batch. The loss of a step is divided by those of all ranks."""
        from ...models.loss import IGNORE

        if "labels" not in targets:
            given = ", ".join(targets)
            why = f"{type(self).__name__} has targets without labels ({given}), and does not say their number"
            fix = "write def count(self, targets), which gives an int; docs/extending.md has an example"
            raise UserError(Problem("task", why, fix))
        return int((targets["labels"] != IGNORE).sum())

    def head_gives_losses(self) -> bool:
        """Whether the head of the model may give losses in place of logits, as ``ask`` asks it to."""
        return False

    def ask(self, targets: dict[str, Any], training: bool) -> Asked | None:
        """What the head is asked for, for one micro-batch; None for logits. ``loss``, ``evaluate`` and ``records`` then
        get an output that only the functions of ``models/loss.py`` can read."""
        return None

    def features(self, outputs: Any) -> dict[str, Tensor]:
        """Features that a coupled loss is computed from: a row per sample, or a number that all samples share."""
        raise NotImplementedError(f"{type(self).__name__} is coupled, but gives no features")

    @abstractmethod
    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        """Sum of the losses of all labels of a micro-batch, as an fp32 scalar."""

    @abstractmethod
    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        """Sums that ``metrics`` needs, of any shape."""

    @abstractmethod
    def metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        """Metrics from the sums over the whole evaluation set, ``loss`` among them.

        Args:
            sums: numbers for scalar sums, and tensors on the CPU in double precision for others.
        """

    def step(self, model: Any, inputs: dict[str, Any], targets: dict[str, Any]) -> Tensor:
        """The loss of a micro-batch in training. Override it to call the model otherwise than once with ``inputs``:
        several times, with other inputs, or for more than its outputs. A pipeline cannot run such a task.

        Args:
            model: called with inputs by keyword, under any plan as one model.
            inputs: those of the micro-batch, by keyword.

        Returns:
            The sum of the losses of all labels, as ``loss`` gives it.
        """
        return self.loss(model(**inputs), targets)

    def evaluation_step(self, model: Any, inputs: dict[str, Any], targets: dict[str, Any]) -> Any:
        """Outputs of a micro-batch for ``evaluate`` and ``records``, without gradient. Override it to call the model
        otherwise than once with ``inputs``; every rank must call it equally often."""
        return model(**inputs)

    def prompt(self, inputs: dict[str, Any], targets: dict[str, Any]) -> dict[str, Any]:
        """Inputs of a model that is to write texts: those of an encoder, or the beginnings of texts."""
        return {name: value for name, value in inputs.items() if not name.startswith("decoder_")}

    def records(self, outputs: Any, targets: dict[str, Any]) -> dict[str, Any]:
        """Values to keep of each sample for predictions, by name: small tensors [samples, ...], or lists with a value
        per sample. A text that the model has written is kept without this, as ``written``."""
        return {}

    def prediction(self, record: dict[str, Any], facts: Facts, tokenizer: Any) -> dict[str, Any]:
        """A record as people read it: names of labels, decoded texts."""
        return dict(record)

    def record_metrics(self, records: Iterator[dict[str, Any]]) -> dict[str, float]:
        """Metrics of the records of the whole set, in its order; rank 0 calls it if ``scores_records``."""
        return {}


def share_of_labels(smoothing: float) -> float:
    """``label_smoothing`` of a task.

    Raises:
        ValueError: it is no share below 1.
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing={smoothing} must be at least 0 and below 1; 0.1 is usual")
    return smoothing


STEPS = ("step", "evaluation_step")
"""Methods by which a task calls the model itself."""


def own_steps(task: Any) -> frozenset[str]:
    """Which of ``STEPS`` a task, or a class of one, has of its own."""
    kind = task if isinstance(task, type) else type(getattr(task, "task", task))  # the recipe's, in a ``CheckedTask``
    return frozenset(name for name in STEPS if getattr(kind, name, None) not in (None, getattr(Task, name)))


def own_steps_of(component: Component) -> frozenset[str]:
    """``own_steps`` of the recipe's task, without making the task."""
    try:
        return own_steps(locate(component["_target_"]))
    except Exception:  # reported by the check of components
        return frozenset()


def head_of(component: Component) -> str:
    """Head of the recipe's task, without making the task."""
    try:
        return getattr(locate(component["_target_"]), "head", USUAL)
    except Exception:  # reported by the check of components
        return USUAL


def reads_texts(component: Any) -> bool:
    """Whether the model of the recipe's task reads texts."""
    try:
        return getattr(locate(component["_target_"]), "texts", True)
    except Exception:  # reported by the check of components
        return True


def takes_chats(component: Any) -> bool:
    """Whether the recipe's task makes samples of its own of conversations."""
    try:
        return bool(getattr(locate(component["_target_"]), "chats", False))
    except Exception:  # reported by the check of components
        return False


def learns_from_rows(component: Any) -> bool:
    """Whether the recipe's task learns from rows, not from blocks of text."""
    try:
        return getattr(locate(component["_target_"]), "samples", None) is not None
    except Exception:  # reported by the check of components
        return False
