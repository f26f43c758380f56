"""Collation: padding, masks, and the count of labels that the loss is divided by."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from trireme.trainer.data.collator import IGNORE, CausalLMCollator, Sample, without_labels


def sample(index: int, length: int, labels: list[int] | None = None) -> Sample:
    made: Sample = {"input_ids": np.arange(1, length + 1, dtype=np.uint16), "index": index}
    return made if labels is None else made | {"labels": np.array(labels)}


def test_packed_blocks_need_no_mask() -> None:
    batch = CausalLMCollator(16, pad_token_id=0, micro_batch_size=2)([sample(i, 16) for i in (5, 3, 9, 1)])
    assert [set(micro) for micro in batch.micro_batches] == [{"input_ids", "labels"}] * 2
    assert all(t.shape == (2, 16) and t.dtype == torch.int64 for micro in batch.micro_batches for t in micro.values())
    assert batch.samples == [5, 3, 9, 1] and batch.tokens == 64
    assert batch.labels == 4 * 15  # the first token of a block is predicted by nobody
    micro = batch.micro_batches[0]
    assert torch.equal(micro["input_ids"], micro["labels"])
    assert micro["input_ids"].data_ptr() != micro["labels"].data_ptr()


def test_a_step_is_padded_to_one_length() -> None:
    samples = [sample(0, 3), sample(1, 4), sample(2, 9), sample(3, 16)]
    batch = CausalLMCollator(32, pad_token_id=7, micro_batch_size=2, pad_to_multiple_of=8)(samples)
    first, second = batch.micro_batches
    assert first["input_ids"].shape == second["input_ids"].shape == (2, 16)
    assert first["attention_mask"].sum(1).tolist() == [3, 4] and second["attention_mask"].sum(1).tolist() == [9, 16]
    assert first["input_ids"][0].tolist() == [1, 2, 3] + [7] * 13
    assert first["labels"][0].tolist() == [1, 2, 3] + [IGNORE] * 13
    assert batch.tokens == 32 and batch.labels == 28


def test_micro_batches_padded_alone() -> None:
    samples = [sample(0, 8), sample(1, 8), sample(2, 9), sample(3, 10)]
    batch = CausalLMCollator(12, pad_token_id=0, micro_batch_size=2, pad_step=False)(samples)
    first, second = batch.micro_batches
    assert first["input_ids"].shape == (2, 8) and "attention_mask" not in first
    assert second["input_ids"].shape == (2, 12) and second["attention_mask"].sum() == 19  # not above block_size


def test_labels_are_counted_as_the_loss_counts_them() -> None:
    """Uneven masks: the count equals the labels that are left in the tensors after the shift."""
    generator = np.random.default_rng(0)
    samples = []
    for index in range(12):
        length = int(generator.integers(1, 17))
        ids = generator.integers(1, 50, length)
        labels = np.where(generator.random(length) < 0.5, IGNORE, ids)
        samples.append({"input_ids": ids, "labels": labels, "index": index})
    batch = CausalLMCollator(16, pad_token_id=0, micro_batch_size=3)(samples)
    left = sum(int((micro["labels"][:, 1:] != IGNORE).sum()) for micro in batch.micro_batches)
    assert batch.labels == left > 0
    assert batch.labels < sum(int((micro["labels"] != IGNORE).sum()) for micro in batch.micro_batches)
    assert batch.tokens == sum(int(micro["attention_mask"].sum()) for micro in batch.micro_batches)


def test_a_first_label_and_a_single_token_count_nothing() -> None:
    collator = CausalLMCollator(8, pad_token_id=0, micro_batch_size=4)
    batch = collator([sample(0, 3, [1, IGNORE, IGNORE]), sample(1, 1), sample(2, 2, [IGNORE, 2])])
    assert batch.labels == 1
    assert collator([without_labels(sample(0, 8))]).labels == 0


def test_wrong_samples_are_refused() -> None:
    collator = CausalLMCollator(8, pad_token_id=0, micro_batch_size=1)
    with pytest.raises(ValueError, match="9 tokens exceeds block_size=8"):
        collator([sample(0, 9)])
    with pytest.raises(ValueError, match="sample 4 has 2 labels for 3 tokens"):
        collator([sample(4, 3, [1, 2])])
    with pytest.raises(ValueError, match="micro_batch_size=0"):
        CausalLMCollator(8, pad_token_id=0, micro_batch_size=0)
