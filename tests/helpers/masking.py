"""Collators that mask a different share of the labels in each sample, to test how losses are averaged over labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from trireme.trainer.data.collator import CausalLMCollator
from trireme.trainer.data.latent_collator import LatentCollator


class UnevenMasks(CausalLMCollator):
    """Keeps labels on a share of each sample that depends on its index: from almost none to all of them."""

    def __call__(self, samples: Sequence[dict[str, Any]]):
        return super().__call__([mask(sample) for sample in samples])


class UnevenLatents(LatentCollator):
    """``UnevenMasks`` for models that predict tokens at their last positions only."""

    def micro_batch(self, samples: Sequence[dict[str, Any]]):
        return super().micro_batch([mask(sample) for sample in samples] if "position" in samples[0] else samples)


def mask(sample: dict[str, Any]) -> dict[str, Any]:
    labels = np.array(sample["input_ids"], dtype=np.int64)
    labels[: (sample["index"] * 7919) % len(labels)] = -100
    return {**sample, "labels": labels}
