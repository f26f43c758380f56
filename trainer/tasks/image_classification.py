"""Image classification task: predict one class, several classes or a number for each image."""

from __future__ import annotations

from .sequence_classification import SequenceClassification


class ImageClassification(SequenceClassification):
    """Loss in nats per image (squared error for numbers); metrics: loss, and accuracy and macro F1 for classes."""

    head = "image_classification"
    samples = "trireme.trainer.data.image_rows.LabelledImages"
    collator = "trireme.trainer.data.image_collator.ImageCollator"
    texts = False
    loss_unit = "per image"
