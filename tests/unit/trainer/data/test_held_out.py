"""Tests of how documents are split into training and held-out ones: by hashes of their texts, with the requested share,
and with a document on each side where possible.
"""

from __future__ import annotations

import numpy as np
from trireme.trainer.data.held_out import first_of_each, is_held_out, split_documents, text_hash

GOLDEN = 13603378265980911469
HASHES = np.array([text_hash(f"document {i}") for i in range(4000)], np.uint64)


def test_the_share_is_met_and_follows_the_text() -> None:
    train, held_out = split_documents(HASHES, 0.1)
    assert 320 < len(held_out) < 480 and len(train) + len(held_out) == 4000
    backwards = split_documents(HASHES[::-1], 0.1)[1]
    assert set(HASHES[held_out]) == set(HASHES[::-1][backwards])
    assert set(held_out) < set(split_documents(HASHES, 0.2)[1])  # a larger share takes more, and gives none back
    assert all(is_held_out(int(value), 0.1) for value in HASHES[held_out])
    assert not any(is_held_out(int(value), 0.1) for value in HASHES[train])


def test_hashes_never_change() -> None:
    """Prepared data and checkpoints of streams rely on equal hashes in every version."""
    assert text_hash("trireme") == GOLDEN


def test_few_documents_fill_both_splits() -> None:
    for share in (0.001, 0.999):
        for count in (2, 3, 5):
            train, held_out = split_documents(HASHES[:count], share)
            assert len(train) and len(held_out) and len(train) + len(held_out) == count
    assert [len(side) for side in split_documents(HASHES[:1], 0.001)] == [1, 0]
    assert [len(side) for side in split_documents(HASHES[:5], 0.0)] == [5, 0]


def test_the_first_of_repeated_documents_stays() -> None:
    assert first_of_each(np.array([7, 3, 7, 9, 3, 1], np.uint64)).tolist() == [0, 1, 3, 5]
