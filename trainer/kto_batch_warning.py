"""Warn at the start of a KTO run if many of its batches would contain only good answers, or only bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from .data.preference.judged_answers import one_sided
from .preference_passes import preference_in


def kto_batch_warning(corpus: Any) -> Iterator[str]:
    """Warnings about the answers that a step holds, for a task that needs good and bad ones (KTO).

    Args:
        corpus: that of the run, whose rows are known.
    """
    task = preference_in(corpus.task)
    parts = [part for part in getattr(corpus, "parts", [corpus]) if hasattr(part, "row_sets")]
    if task is None or not task.estimates or not parts:
        return
    desirable = np.concatenate([np.asarray(part.rows.rows["desirable"], bool) for part in parts])
    of_row = sum(len(part.rows) for part in parts) / max(sum(len(part.train) for part in parts), 1)
    if note := one_sided(desirable, corpus.global_batch_size * of_row):
        yield note
