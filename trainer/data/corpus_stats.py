"""``Stats``: statistics of a corpus, such as its number of tokens, and hashes that identify its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from .file_formats import listed


@dataclass
class Stats:
    """Statistics of a corpus. Most are None for a stream."""

    documents: int | None = None
    """Documents of the sources, without empty and repeated ones."""
    duplicates_dropped: int | None = None
    """Documents that repeat another one."""
    undecodable_skipped: int | None = None
    """Files that could not be decoded (Python sources only; others are refused)."""
    empty_documents: int | None = None
    """Documents without text (null, or an empty string)."""
    without_text: list[str] = field(default_factory=list)
    """Names of files that gave no document."""
    incomplete_rows: list[str] = field(default_factory=list)
    """By source, one line on its rows that lack what the task needs."""
    unread_columns: list[str] = field(default_factory=list)
    """By source, one line on its columns that the task does not read."""
    documents_digest: str | None = None
    """Digest that is equal for the same train and held-out documents in the same order."""
    tokens_digest: str | None = None
    """Digest that is equal for the same tokens."""
    train_documents: int | None = None
    held_out_documents: int | None = None
    train_tokens: int | None = None
    held_out_tokens: int | None = None
    train_blocks: int | None = None
    """Samples of one epoch."""
    held_out_blocks: int | None = None
    train_tokens_cut: int | None = None
    """Train tokens beyond ``data.block_size`` (without packing), or in no whole block (with it): never trained on."""
    bytes_per_token: float | None = None
    """UTF-8 bytes per token of the held-out documents (of the train documents, if none are held out)."""
    unigram_entropy: float | None = None
    """Entropy in nats of the frequencies of held-out tokens: the lowest loss of a model without context."""

    def left_out(self) -> str:
        """One line on documents that are in neither split; empty if none are known."""
        parts = [
            f"{count} {what}"
            for count, what in (
                (self.duplicates_dropped, "repeated document(s)"),
                (self.empty_documents, "document(s) without text (null or empty)"),
                (self.undecodable_skipped, "file(s) that cannot be decoded"),
            )
            if count
        ]
        if self.without_text:
            parts.append(f"{len(self.without_text)} file(s) that give no document ({listed(self.without_text)})")
        lines = [f"left out: {', '.join(parts)}"] if parts else []
        return "; ".join(self.incomplete_rows + lines)


def joined_stats(parts: Sequence[Stats]) -> Stats:
    """Statistics of several sources together: numbers that can be added, and names."""
    joined = Stats(
        without_text=[name for part in parts for name in part.without_text],
        incomplete_rows=[line for part in parts for line in part.incomplete_rows],
        unread_columns=[line for part in parts for line in part.unread_columns],
    )
    for name in _ADDED:
        values = [getattr(part, name) for part in parts]
        if all(value is not None for value in values):
            setattr(joined, name, sum(values))
    return joined


_ADDED = ("documents", "duplicates_dropped", "undecodable_skipped", "empty_documents")
_ADDED += tuple(f"{split}_{what}" for split in ("train", "held_out") for what in ("documents", "tokens", "blocks"))
_ADDED += ("train_tokens_cut",)


def cut_line(name: str, cut: tuple[int, int], of: tuple[int, int], block_size: int) -> str:
    """One line on the part of a split that ``data.packing=false`` cuts off; empty if there is none.

    Args:
        cut: documents beyond the block size, and their tokens beyond it.
        of: all documents and tokens.
    """
    if not cut[0]:
        return ""
    return (
        f"data.packing=false cuts {cut[0]} of {of[0]} {name} documents after data.block_size={block_size} tokens: "
        f"{cut[1]} of {of[1]} tokens ({cut[1] / of[1]:.1%}) are left out; "
        "a larger block_size or packing=true keeps them"
    )


def digest(arrays: Iterable[np.ndarray]) -> str:
    """A hash of 32 hexadecimal digits of the numbers in ``arrays``, in order."""
    state = hashlib.blake2b(digest_size=16)
    for array in arrays:
        state.update(np.ascontiguousarray(array).data)
    return state.hexdigest()


def unigram_entropy(counts: np.ndarray) -> float:
    """Entropy in nats of a distribution given by counts."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())
