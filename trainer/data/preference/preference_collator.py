"""Collators for preference data. Each sample gives two token sequences: the chosen and the rejected answer to a prompt
or, for KTO, a labelled answer and an answer to another prompt.

``tasks/preference.py`` describes the targets. A sequence holds one text, or several packed texts that do not attend to
each other. With packing, texts with the same number in both sequences form a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from ....models.loss import IGNORE, next_token_labels
from ....parallel.micro_batch import MicroBatch
from ..base_collator import Sample, positions
from ..step_padding import StepPadding
from .answer_encoder import SIDES
from .packed_pairs import samples_in

REFERENCE = "reference"
"""Name in a sample of the log-probabilities of its two answers under the reference, where they are known."""


class TextOf(NamedTuple):
    """One text of a sample."""

    ids: np.ndarray
    labels: np.ndarray
    number: int
    """Number from which its random noise (dropout) is drawn; the two texts of a sample get different noise."""
    reference: float
    desirable: bool


@dataclass
class PairCollator(StepPadding):
    """Collates pairs. Each sample takes two rows, the chosen text and behind it the rejected one."""

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        """One data rank's share of a step, cut into micro-batches in order."""
        among = samples if self.pad_step else None
        return [self._micro(group, among) for group in self.groups(samples)]

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        """Inputs ``input_ids`` [rows, length], with ``attention_mask`` if there is padding, or ``position_ids`` if they
        are packed; targets as ``tasks/preference.py`` describes them."""
        return self._micro(samples, None)

    def _micro(self, samples: Sequence[Sample], among: Sequence[Sample] | None) -> MicroBatch:
        """
        Args:
            among: samples to whose longest text all are padded; None pads to the longest of ``samples``.
        """
        rows = [_row(sample, side) for sample in samples for side in SIDES]
        others = [_row(sample, side) for sample in among or () for side in SIDES]
        length = None if "pairs" in samples[0] else self._length(others or rows)
        return self._rows(rows, length, positions(samples).repeat_interleave(2), 2)

    def _rows(
        self, rows: list[list[TextOf]], unpacked: tuple[int, bool] | None, places: torch.Tensor, per_sample: int
    ) -> MicroBatch:
        """
        Args:
            unpacked: length and whether there is padding; None for packed rows, which all have one length.
        """
        length, padded = unpacked or (self.block_size, False)
        shape, count = (len(rows), length), max(map(len, rows))
        tokens = np.full(shape, self.pad_token_id, np.int64)
        labels, texts, documents = (np.full(shape, fill, np.int64) for fill in (IGNORE, IGNORE, -1))
        within, mask = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        there, desirable = np.zeros((len(rows), count), bool), np.zeros((len(rows), count), bool)
        reference = np.full((len(rows), count), np.nan, np.float32)
        for at, row in enumerate(rows):
            begin = 0
            for number, text in enumerate(row):
                end = begin + len(text.ids)
                part = at, slice(begin, end)
                tokens[part], labels[part], texts[part] = text.ids, text.labels, number
                documents[part], within[part], mask[part] = text.number, np.arange(end - begin), 1
                labels[at, begin] = IGNORE  # nothing stands before it
                there[at, number], desirable[at, number] = True, text.desirable
                reference[at, number], begin = text.reference, end
            within[at, begin:] = np.arange(length - begin)
        targets = {"labels": next_token_labels(torch.from_numpy(labels))}
        others = {"texts": texts, "there": there, REFERENCE: reference, "desirable": desirable}
        targets |= {name: torch.from_numpy(value) for name, value in others.items()}
        size, inputs = int(mask.sum()), {"input_ids": torch.from_numpy(tokens)}
        if unpacked is None:
            inputs["position_ids"] = torch.from_numpy(within)
            return MicroBatch(inputs, targets, places, size, torch.from_numpy(documents), per_sample)
        if padded:
            inputs["attention_mask"] = torch.from_numpy(mask)
        draws = torch.tensor([row[0].number for row in rows], dtype=torch.int64)
        return MicroBatch(inputs, targets, places, size, None, per_sample, draws)

    def _length(self, rows: list[list[TextOf]]) -> tuple[int, bool]:
        """Padded length of rows of one text each, and whether any of them is shorter."""
        return self.padded([len(row[0].ids) for row in rows])


@dataclass
class JudgedCollator(PairCollator):
    """Collates single answers. The answers to other prompts are in ``MicroBatch.beside``, which is never trained on."""

    def _micro(self, samples: Sequence[Sample], among: Sequence[Sample] | None) -> MicroBatch:
        places, found = positions(samples), []
        for side in SIDES:
            rows, others = ([_row(sample, side) for sample in of] for of in (samples, among or samples))
            length = None if "pairs" in samples[0] else self._length(others)
            found.append(self._rows(rows, length, places, 1))
        found[0].beside = found[1]
        return found[0]


def _row(sample: Mapping[str, Any], side: str) -> list[TextOf]:
    """The texts of one side of a sample, or of all samples of a packed row."""
    second = SIDES.index(side)
    found = []
    for number, one in samples_in(sample):
        reference = float(one[REFERENCE][second]) if REFERENCE in one else float("nan")
        text = one[f"{side}_ids"], one[f"{side}_labels"], 2 * number + second
        found.append(TextOf(*text, reference, bool(one["desirable"])))
    return found
