"""Collator for Perceiver AR, which predicts next tokens only at the last positions of a sample (the latents).

A window is cut from each sample: the latents, and a prefix before them. In training, the length of the prefix and the
place of the window are random, and tokens of the prefix may be dropped. All three are functions of (seed, epoch,
sample). An evaluation reads the end of each sample, with the longest possible prefix or a given one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import Problem, UserError
from ...models.loss import IGNORE
from ...parallel.micro_batch import MicroBatch
from .base_collator import Collator, Sample, draws, positions
from .collator import labels_beside

Row = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Tokens that are read, their positions, and the labels of the latents among them."""


@dataclass
class LatentCollator(Collator):
    """Pads rows on the left to one length, which never changes: the longest prefix that is left, and the latents."""

    block_size: int
    """Length of the longest sample in tokens; given by the engine from ``data.block_size``."""
    pad_token_id: int
    """Token id of padding positions; given by the engine from the tokenizer."""
    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    seed: int
    """Seed of the random prefixes; given by the engine from ``seed``."""
    model: Any
    """The model's configuration, which tells the number of latents; given by the engine."""
    shortest_prefix: int = 0
    """Fewest tokens of a prefix in training."""
    longest_prefix: int | None = None
    """Most tokens of a prefix in training; null takes what ``data.block_size`` leaves beside the latents."""
    prefix_dropout: float = 0.0
    """Share of the tokens of each prefix that are left out in training. The others keep their positions."""
    eval_prefix: int | None = None
    """Tokens of a prefix in evaluations; null takes as many as there are."""

    def __post_init__(self) -> None:
        if not isinstance(getattr(self.model, "max_latents", None), int):
            kind = getattr(self.model, "model_type", type(self.model).__name__)
            why = f"is for models with latents, and {kind} has none"
            raise UserError(Problem("collator", why, "leave it out, or set model.family=perceiver_ar", "latents"))
        self.latents: int = self.model.max_latents
        most = self.block_size - self.latents
        if self.longest_prefix is None:
            self.longest_prefix = max(most, 0)
        for name in ("shortest_prefix", "longest_prefix", "eval_prefix"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= max(most, 0):
                raise ValueError(
                    f"{name}={value} is not from 0 to {max(most, 0)}, which data.block_size={self.block_size} leaves "
                    f"beside {self.latents} latents; write a number of this range, or lengthen data.block_size"
                )
        if self.shortest_prefix > self.longest_prefix:
            raise ValueError(
                f"shortest_prefix={self.shortest_prefix} is above longest_prefix={self.longest_prefix}; exchange them"
            )
        if not 0 <= self.prefix_dropout < 1:
            raise ValueError(f"prefix_dropout={self.prefix_dropout} must be at least 0 and below 1; use 0 for none")

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        """Inputs ``input_ids`` (samples x length, int64), ``attention_mask`` if there is padding, and ``position_ids``
        if tokens are dropped; targets ``labels`` (samples x latents), at the positions that predict them."""
        training = "position" in samples[0]
        rows = list(self._rows(samples, training))
        prefix = self._kept(self.longest_prefix or 0) if training else self.block_size - self.latents
        if not training and self.eval_prefix is not None:
            prefix = self.eval_prefix
        length = prefix + self.latents
        inputs = {"input_ids": _left_padded([row[0] for row in rows], length, self.pad_token_id)}
        if any(len(row[0]) < length for row in rows):
            inputs["attention_mask"] = _left_padded([np.ones(len(row[0]), np.int64) for row in rows], length, 0)
        if training and self.prefix_dropout:
            inputs["position_ids"] = _left_padded([row[1] for row in rows], length, 0)
        labels = _left_padded([row[2] for row in rows], self.latents, IGNORE)
        return MicroBatch(inputs, {"labels": labels}, positions(samples), sum(len(row[0]) for row in rows))

    def _rows(self, samples: Sequence[Sample], training: bool) -> Iterator[Row]:
        for sample in samples:
            tokens = np.asarray(sample["input_ids"], np.int64)
            if len(tokens) > self.block_size:
                raise ValueError(f"a sample of {len(tokens)} tokens exceeds block_size={self.block_size}")
            labels = np.append(np.asarray(labels_beside(sample), np.int64)[1:], IGNORE)
            window = self._drawn(sample, len(tokens)) if training else self._last(len(tokens))
            tokens, labels = tokens[window], labels[window]
            places = np.arange(len(tokens))
            prefix = max(len(tokens) - self.latents, 0)
            if training and prefix and self.prefix_dropout:
                kept = draws(self.seed, sample["position"], "prefix dropout").permutation(prefix)[: self._kept(prefix)]
                places = np.concatenate([np.sort(kept), places[prefix:]])
            yield tokens[places], places, labels[prefix:]

    def _drawn(self, sample: Sample, length: int) -> slice:
        """A window of random length at a random position."""
        most = min(self.longest_prefix or 0, max(length - self.latents, 0))
        drawn = draws(self.seed, sample["position"], "prefix")
        prefix = int(drawn.integers(min(self.shortest_prefix, most), most, endpoint=True))
        start = int(drawn.integers(0, max(length - self.latents - prefix, 0), endpoint=True))
        return slice(start, start + prefix + self.latents)

    def _last(self, length: int) -> slice:
        prefix = length if self.eval_prefix is None else self.eval_prefix
        return slice(max(length - self.latents - prefix, 0), length)

    def _kept(self, prefix: int) -> int:
        """Number of tokens of a prefix that remain after dropout."""
        return prefix - int(prefix * self.prefix_dropout)


def _left_padded(rows: Sequence[np.ndarray], length: int, fill: int) -> Tensor:
    found = np.full((len(rows), length), fill, np.int64)
    for place, row in zip(found, rows, strict=True):
        place[length - len(row) :] = row
    return torch.from_numpy(found)
