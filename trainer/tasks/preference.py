"""The base class of preference tasks (DPO, IPO, KTO, or your own): compare log-probabilities of texts with a reference.

The reference is the model with its initial weights, or without its adapters. A sample has two texts. Targets of a
micro-batch, in which a row holds one text or several packed ones:

| name | shape | holds |
| --- | --- | --- |
| ``labels`` | [rows, length] | tokens of the answers, each at the position that predicts it |
| ``texts`` | [rows, length] | number of the text in its row that a token belongs to |
| ``there`` | [rows, texts] | whether there is such a text; rows of one micro-batch may hold different numbers of them |
| ``reference`` | [rows, texts] | log-probability of each answer under the reference (fp32) |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from .task import Sums, Task

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.head_loss import Asked

Source = Literal["start", "adapter_off"]
READERS = ("ask", "log_probabilities", "answers", "measured", "loss", "evaluate", "records", "estimate")
"""Methods that read the model's outputs."""


class Answers(NamedTuple):
    """Numbers of the answers of a micro-batch; each [rows, texts]."""

    logps: Tensor
    """Log-probability of the whole answer."""
    ratios: Tensor
    """Log-probability minus that under the reference; 0 where there is no text."""
    lengths: Tensor
    """Tokens of the answer."""
    there: Tensor


class Preference(Task):
    """Computes log-probabilities of answers; subclasses compute a loss from them."""

    head = "causal_lm"
    chats = True
    collator = "trireme.trainer.data.preference.preference_collator.PairCollator"
    samples = "trireme.trainer.data.preference.preference_rows.Pairs"
    loss_unit = "nats per pair"
    estimates: ClassVar[bool] = False
    """Whether the loss needs a number of the whole global batch (``estimate``), which is found before the step."""

    def __init__(self, beta: float = 0.1, reference: Source = "start") -> None:
        """
        Args:
            beta: how strongly the model is held to the reference; greater is stronger.
            reference: what answers are compared with: ``start`` computes log-probabilities of all of them once, before
                training, under the weights that the run begins with; ``adapter_off`` computes them in each step, with
                the adapters of the model switched off.
        """
        if beta <= 0:
            raise ValueError(f"beta={beta} must be above 0; 0.1 is usual")
        if reference not in ("start", "adapter_off"):
            raise ValueError(f"reference={reference!r} is neither start nor adapter_off; write one of them")
        self.beta, self.reference = beta, reference

    def head_gives_losses(self) -> bool:
        package = __name__.partition(".")[0]
        readers = (getattr(type(self), name) for name in READERS)
        return all(reader.__module__.partition(".")[0] == package for reader in readers)  # others may read logits

    def ask(self, targets: dict[str, Any], training: bool) -> Asked | None:
        from ...models.head_loss import Asked

        return Asked(targets["labels"], summed=False) if "labels" in targets else None

    def log_probabilities(self, outputs: Any, targets: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Log-probability and tokens of each answer, both [rows, texts]."""
        from ...models.loss import token_log_probabilities
        from ...models.text_sums import text_sums

        labels = targets["labels"]
        tokens = token_log_probabilities(outputs.logits, labels)
        return text_sums(tokens, labels, targets["texts"], targets["there"].shape[1])

    def answers(self, outputs: Any, targets: dict[str, Any]) -> Answers:
        """The answers of a micro-batch, with their log-probabilities under the reference."""
        logps, lengths = self.log_probabilities(outputs, targets)
        there = targets["there"]
        ratios = (logps - targets["reference"].to(logps.dtype)).where(there, 0)
        return Answers(logps, ratios, lengths, there)

    def measured(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        """Sums over a micro-batch: ``loss``, ``labels`` (what the loss is divided by), and those of metrics."""
        raise NotImplementedError(f"{type(self).__name__} has no loss: write measured(outputs, targets)")

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        return self.measured(outputs, targets)["loss"]

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        return {name: value.detach() for name, value in self.measured(outputs, targets).items()}

    def estimate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        """Sums over the texts beside a micro-batch (``MicroBatch.beside``), from which ``take_estimate`` makes the
        number of the global batch."""
        raise NotImplementedError(f"{type(self).__name__} estimates nothing")

    def take_estimate(self, sums: dict[str, Any]) -> None:
        """Take these sums over the whole global batch, or over a whole set that is evaluated."""
        raise NotImplementedError(f"{type(self).__name__} estimates nothing")


def named(record: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """A record whose lists hold a value for each text of a sample, with a name for each of these values."""
    found = {}
    for key, value in record.items():
        if isinstance(value, list) and len(value) == len(names):
            found |= {f"{key}_{name}": one for name, one in zip(names, value, strict=True)}
        else:
            found[key] = value
    return found
