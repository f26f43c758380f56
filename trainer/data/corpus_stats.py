"""What is known of a corpus: how many documents and tokens, what was left out, and what tells it from another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Stats:
    """What is known of a corpus. Of a stream most is not: None."""

    documents: int | None = None
    """Documents of the sources, empty and repeated ones not counted."""
    duplicates_dropped: int | None = None
    """Documents that repeat another one."""
    undecodable_skipped: int | None = None
    """Files that could not be decoded (Python sources only; others are refused)."""
    empty_documents: int | None = None
    """Documents without text (null, or an empty string)."""
    without_text: list[str] = field(default_factory=list)
    """Files that gave no document."""
    documents_digest: str | None = None
    """Equal for the same train and held-out documents in the same order."""
    tokens_digest: str | None = None
    """Equal for the same tokens."""
    train_documents: int | None = None
    held_out_documents: int | None = None
    train_tokens: int | None = None
    held_out_tokens: int | None = None
    train_blocks: int | None = None
    """Samples of one epoch."""
    held_out_blocks: int | None = None
    bytes_per_token: float | None = None
    """UTF-8 bytes per token of the held-out documents (of the train documents, if none are held out)."""
    unigram_entropy: float | None = None
    """Entropy in nats of the held-out tokens' own frequencies: a model that knows no context cannot get below it."""


def digest(arrays: Iterable[np.ndarray]) -> str:
    """32 hexadecimal digits of the numbers in ``arrays``, in order."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def unigram_entropy(counts: np.ndarray) -> float:
    """Entropy in nats of a distribution given by counts."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
