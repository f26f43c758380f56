"""Audio classification task: predict one class, several classes or a number for each audio clip."""

from __future__ import annotations

from .sequence_classification import SequenceClassification


class AudioClassification(SequenceClassification):
    """Loss in nats per audio clip (squared error for numbers); metrics: loss, and accuracy and macro F1 for classes."""

    head = "audio_classification"
    samples = "trireme.trainer.data.speech_rows.LabelledAudio"
    collator = "trireme.trainer.data.speech_collator.SpeechCollator"
    texts = False
    loss_unit = "per audio clip"
