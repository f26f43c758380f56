"""Collator for next-token prediction: makes micro-batches of token sequences and shifts the labels.

The labels of samples follow the convention of Hugging Face: a label stands at its own token, and ``-100`` means no
label. They are shifted here, once. In a micro-batch each label therefore stands at the position that predicts it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...models.loss import IGNORE, next_token_labels
from ...parallel.micro_batch import MicroBatch
from .base_collator import Sample, positions
from .step_padding import StepPadding


@dataclass
class CausalLMCollator(StepPadding):
    """Collates token samples for next-token prediction.

    Blocks of exactly ``block_size`` tokens get no attention mask; shorter samples are padded on the right. Packed rows
    (``packed_rows.py``) get none either: ``position_ids`` that restart keep their documents apart, and padding is one
    document more. All of them are padded to ``block_size``, so that shapes never change. A sample that another
    one continues has its following token as ``next_token``.
    """

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        """One data rank's share of a step, cut into micro-batches in order."""
        if "documents" in samples[0]:
            return [self._packed(group) for group in self.groups(samples)]
        length, masked = self._shape(samples) if self.pad_step else (None, None)
        return [self._collate(group, length, masked) for group in self.groups(samples)]

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        """Inputs ``input_ids`` (samples x length, int64), and ``attention_mask`` if there is padding; targets
        ``labels``, of the same shape, at the positions that predict them."""
        return self._packed(samples) if "documents" in samples[0] else self._collate(samples, None, None)

    def _shape(self, samples: Sequence[Sample]) -> tuple[int, bool]:
        """Padded length of ``samples``, and whether any of them is shorter."""
        return self.padded([len(sample["input_ids"]) for sample in samples])

    def _collate(self, samples: Sequence[Sample], length: int | None, masked: bool | None) -> MicroBatch:
        if length is None:
            length, masked = self._shape(samples)
        count = sum(len(sample["input_ids"]) for sample in samples)
        if not masked and all(sample.get("labels") is None for sample in samples):  # packed blocks: the usual case
            tokens = torch.from_numpy(np.stack([sample["input_ids"] for sample in samples]).astype(np.int64))
            labels = next_token_labels(tokens)
            if "next_token" in samples[0]:
                labels[:, -1] = torch.tensor([sample["next_token"] for sample in samples])
            return MicroBatch({"input_ids": tokens}, {"labels": labels}, positions(samples), count)
        input_ids = np.full((len(samples), length), self.pad_token_id, dtype=np.int64)
        labels = np.full((len(samples), length), IGNORE, dtype=np.int64)
        attention = np.zeros((len(samples), length), dtype=np.int64)
        for row, sample in enumerate(samples):
            tokens = sample["input_ids"]
            input_ids[row, : len(tokens)] = tokens
            labels[row, : len(tokens)] = labels_beside(sample)
            attention[row, : len(tokens)] = 1
        inputs = {"input_ids": torch.from_numpy(input_ids)}
        if masked:
            inputs["attention_mask"] = torch.from_numpy(attention)
        return MicroBatch(inputs, {"labels": next_token_labels(torch.from_numpy(labels))}, positions(samples), count)

    def _packed(self, samples: Sequence[Sample]) -> MicroBatch:
        """Rows of documents that do not see each other: the first token of a document is predicted by none."""
        shape = len(samples), self.block_size
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        labels, documents = np.full(shape, IGNORE, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
        positions_of = np.zeros(shape, dtype=np.int64)
        for row, sample in enumerate(samples):
            size = len(sample["input_ids"])
            if size > self.block_size:
                raise ValueError(f"a row of {size} tokens exceeds block_size={self.block_size}")
            input_ids[row, :size], documents[row, :size] = sample["input_ids"], sample["documents"]
            labels[row, :size] = labels_beside(sample)
            positions_of[row, :size], positions_of[row, size:] = sample["position_ids"], np.arange(shape[1] - size)
        labels[positions_of == 0] = IGNORE
        inputs = {"input_ids": torch.from_numpy(input_ids), "position_ids": torch.from_numpy(positions_of)}
        targets = {"labels": next_token_labels(torch.from_numpy(labels))}
        count = sum(len(sample["input_ids"]) for sample in samples)
        return MicroBatch(inputs, targets, positions(samples), count, torch.from_numpy(documents))


def labels_beside(sample: Sample) -> np.ndarray:
    """The labels of a sample, one beside each of its tokens: its own, else the tokens themselves."""
    labels = sample.get("labels")
    if labels is None:
        return sample["input_ids"]
    if len(labels) != len(sample["input_ids"]):
        raise ValueError(
            f"sample {sample['index']} has {len(labels)} labels for {len(sample['input_ids'])} tokens; "
            "labels stand beside their tokens, so give one for each (-100 where there is none)"
        )
    return labels
