"""Collator for masked language modelling on blocks of tokens (BERT, https://arxiv.org/abs/1810.04805, section 3.1).

The masked positions are a function of (seed, position of the sample in the run). So every epoch masks other tokens, and
the masks are the same for any number of workers and ranks and after a resume. In an evaluation a sample's masks are
always the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import Problem, UserError
from ...models.loss import IGNORE
from ...parallel.micro_batch import MicroBatch
from .base_collator import Collator, Sample, draws, positions
from .padded_collator import padded


@dataclass
class MaskedLMCollator(Collator):
    """Masks a share of the tokens; special tokens never."""

    tokenizer: Any
    """Given by the engine."""
    block_size: int
    """Tokens of the longest sample; given by the engine from ``data.block_size``."""
    pad_token_id: int
    """Token id of padding positions; given by the engine from the tokenizer."""
    micro_batch_size: int
    """Samples of one forward pass; given by the engine from ``trainer.micro_batch_size``."""
    seed: int
    """Given by the engine from ``seed``."""
    masked: float = 0.15
    """Share of the tokens that are to be predicted."""
    replaced: float = 0.8
    """Share of these that become the mask token."""
    random: float = 0.1
    """Share of these that become another token; the rest stays as it is."""
    pad_to_multiple_of: int = 8
    """Padded lengths are multiples of this (but at most ``block_size``)."""

    def __post_init__(self) -> None:
        if not 0 < self.masked <= 1:
            raise ValueError(f"masked={self.masked} is wrong because it is a share; set it above 0 and at most to 1")
        if self.replaced < 0 or self.random < 0 or self.replaced + self.random > 1:
            raise ValueError(
                f"replaced={self.replaced} is wrong because it and random share the masked tokens; use 0.8"
            )
        if self.tokenizer.mask_token_id is None:
            fix = "set data.tokenizer.kind=wordpiece, which has one, or name a tokenizer with one"
            raise UserError(Problem("data.tokenizer", "the tokenizer has no mask token", fix))
        self._special = np.array(sorted(self.tokenizer.all_special_ids), np.int64)

    def __call__(self, samples: Sequence[Sample]) -> list[MicroBatch]:
        return [self.collate(group, "train") for group in self.groups(samples)]

    def micro_batch(self, samples: Sequence[Sample]) -> MicroBatch:
        return self.collate(samples, "evaluation")

    def collate(self, samples: Sequence[Sample], purpose: str) -> MicroBatch:
        """Samples of one forward pass, with masks for training or for an evaluation.

        Args:
            purpose: ``train`` or ``evaluation``.
        """
        tokens = [np.asarray(sample["input_ids"], np.int64) for sample in samples]
        places = positions(samples)
        masked = [self._mask(row, int(place), purpose) for row, place in zip(tokens, places, strict=True)]
        longest, multiple = max(map(len, tokens)), self.pad_to_multiple_of
        length = max(min(-(-longest // multiple) * multiple, self.block_size), longest)
        inputs = {"input_ids": padded([row for row, _ in masked], length, self.pad_token_id)}
        if any(len(row) < length for row in tokens):
            inputs["attention_mask"] = padded([np.ones(len(row), np.int64) for row in tokens], length, 0)
        labels = padded([row for _, row in masked], length, IGNORE)
        return MicroBatch(inputs, {"labels": labels}, places, sum(map(len, tokens)))

    def _mask(self, tokens: np.ndarray, position: int, purpose: str) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels of one sample."""
        numbers = draws(self.seed, position, f"masks, {purpose}")
        chosen = (numbers.random(len(tokens)) < self.masked) & ~np.isin(tokens, self._special)
        if not chosen.any():  # a sample without a label would teach nothing
            usual = np.flatnonzero(~np.isin(tokens, self._special))
            chosen[usual[numbers.integers(len(usual))] if len(usual) else []] = True
        what, others = numbers.random(len(tokens)), numbers.integers(len(self.tokenizer), size=len(tokens))
        inputs = np.where(chosen & (what < self.replaced), self.tokenizer.mask_token_id, tokens)
        swapped = chosen & (what >= self.replaced) & (what < self.replaced + self.random)
        return np.where(swapped, others, inputs), np.where(chosen, tokens, IGNORE)
