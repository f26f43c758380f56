"""Collator for images with captions, in which tokens of the captions are masked and predicted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ...parallel.micro_batch import MicroBatch
from .base_collator import Sample
from .image_collator import stacked
from .masked_lm_collator import MaskedLMCollator


@dataclass
class MaskedCaptionCollator(MaskedLMCollator):
    """Masks a share of the tokens of captions, and stacks their images."""

    def collate(self, samples: Sequence[Sample], purpose: str) -> MicroBatch:
        micro = super().collate(samples, purpose)
        return replace(micro, inputs={**micro.inputs, "pixel_values": stacked(samples)})
