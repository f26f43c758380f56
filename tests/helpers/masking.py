"""A collator with uneven label masks, for tests of the loss's normalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from trireme.trainer.data.collator import CausalLMCollator


class UnevenMasks(CausalLMCollator):
    """Keeps labels on a share of each sample that depends on its index: from almost none to all of them."""

    def __call__(self, samples: Sequence[dict[str, Any]]):
        return super().__call__([mask(sample) for sample in samples])


def mask(sample: dict[str, Any]) -> dict[str, Any]:
    labels = np.array(sample["input_ids"], dtype=np.int64)
    labels[: (sample["index"] * 7919) % len(labels)] = -100
    return {**sample, "labels": labels}
