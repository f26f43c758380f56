"""Text classification task: predict one class, several classes or a number for each text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .task import Sums, Task, share_of_labels

if TYPE_CHECKING:
    from torch import Tensor

    from ...models.facts import Facts


class SequenceClassification(Task):
    """Loss in nats per text (squared error for numbers); metrics: loss, and accuracy and macro F1 for classes."""

    head = "sequence_classification"
    samples = "trireme.trainer.data.text_rows.LabelledTexts"
    collator = "trireme.trainer.data.padded_collator.PaddedCollator"

    loss_unit = "per text"
    label_smoothing: float = 0.0

    def __init__(self, label_smoothing: float = 0.0) -> None:
        """
        Args:
            label_smoothing: share of each class label that is spread evenly over the classes in training. Evaluations
                measure the plain loss; labels that are numbers or several classes are not smoothed.
        """
        self.label_smoothing = share_of_labels(label_smoothing)

    def count(self, targets: dict[str, Any]) -> int:
        from .classification import labelled

        return int(labelled(targets["labels"]).sum())

    def loss(self, outputs: Any, targets: dict[str, Any]) -> Tensor:
        from .classification import label_loss

        return label_loss(outputs.logits, targets["labels"], self.label_smoothing)

    def evaluate(self, outputs: Any, targets: dict[str, Any]) -> Sums:
        from .classification import label_sums

        return label_sums(outputs.logits, targets["labels"])

    def metrics(self, sums: dict[str, Any]) -> dict[str, float]:
        from .classification import label_metrics

        return label_metrics(sums)

    def records(self, outputs: Any, targets: dict[str, Any]) -> dict[str, Any]:
        from .classification import label_records

        return label_records(outputs.logits, targets["labels"])

    def prediction(self, record: dict[str, Any], facts: Facts, tokenizer: Any) -> dict[str, Any]:
        from .classification import label_prediction

        return label_prediction(record, facts.labels)
