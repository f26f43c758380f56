"""Tests of the collator for token blocks: padding, masks, shifted labels, label counts, sample positions, and random
numbers that follow from a position.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from trireme.parallel.micro_batch import MicroBatch, StepBatch
from trireme.trainer.data.base_collator import draws, without_targets
from trireme.trainer.data.collator import IGNORE, CausalLMCollator, Sample
from trireme.trainer.data.loader import Batcher
from trireme.trainer.tasks.causal_lm import CausalLM


def sample(index: int, length: int, labels: list[int] | None = None) -> Sample:
    made: Sample = {"input_ids": np.arange(1, length + 1, dtype=np.uint16), "index": index}
    return made if labels is None else made | {"labels": np.array(labels)}


def step(collator: CausalLMCollator, samples: Sequence[Sample]) -> StepBatch:
    return Batcher(collator, CausalLM().count)(samples)


def test_packed_blocks_need_no_mask() -> None:
    collator = CausalLMCollator(16, pad_token_id=0, micro_batch_size=2)
    batch = step(collator, [sample(i, 16) for i in (5, 3, 9, 1)])
    assert [(set(micro.inputs), set(micro.targets)) for micro in batch.micro_batches] == [
        ({"input_ids"}, {"labels"})
    ] * 2
    for micro in batch.micro_batches:
        assert (micro.rows, micro.length) == (2, 32)
        for tensor in (micro.inputs["input_ids"], micro.targets["labels"]):
            assert tensor.shape == (2, 16) and tensor.dtype == torch.int64
    assert batch.samples == [5, 3, 9, 1] and batch.tokens == 64
    assert batch.labels == 4 * 15  # the first token of a block is predicted by nobody
    micro = batch.micro_batches[0]
    tokens, labels = micro.inputs["input_ids"], micro.targets["labels"]
    assert torch.equal(labels[:, :-1], tokens[:, 1:]) and (labels[:, -1] == IGNORE).all()
    assert tokens.untyped_storage().data_ptr() != labels.untyped_storage().data_ptr()


def test_a_step_is_padded_to_one_length() -> None:
    samples = [sample(0, 3), sample(1, 4), sample(2, 9), sample(3, 16)]
    batch = step(CausalLMCollator(32, pad_token_id=7, micro_batch_size=2, pad_to_multiple_of=8), samples)
    first, second = batch.micro_batches
    assert first.inputs["input_ids"].shape == second.inputs["input_ids"].shape == (2, 16)
    assert first.inputs["attention_mask"].sum(1).tolist() == [3, 4]
    assert second.inputs["attention_mask"].sum(1).tolist() == [9, 16]
    assert first.inputs["input_ids"][0].tolist() == [1, 2, 3] + [7] * 13
    assert first.targets["labels"][0].tolist() == [2, 3] + [IGNORE] * 14
    assert (first.length, second.length) == (7, 25)
    assert batch.tokens == 32 and batch.labels == 28


def test_micro_batches_padded_alone() -> None:
    samples = [sample(0, 8), sample(1, 8), sample(2, 9), sample(3, 10)]
    first, second = CausalLMCollator(12, pad_token_id=0, micro_batch_size=2, pad_step=False)(samples)
    assert first.inputs["input_ids"].shape == (2, 8) and "attention_mask" not in first.inputs
    assert second.inputs["input_ids"].shape == (2, 12)  # not above block_size
    assert second.inputs["attention_mask"].sum() == 19


def test_labels_are_counted_as_the_loss_counts_them() -> None:
    """With uneven masks, the count equals the number of labels that remain after the shift."""
    generator = np.random.default_rng(0)
    samples = []
    for index in range(12):
        length = int(generator.integers(1, 17))
        ids = generator.integers(1, 50, length)
        labels = np.where(generator.random(length) < 0.5, IGNORE, ids)
        samples.append({"input_ids": ids, "labels": labels, "index": index})
    batch = step(CausalLMCollator(16, pad_token_id=0, micro_batch_size=3), samples)
    left = sum(int((each["labels"][1:] != IGNORE).sum()) for each in samples)
    assert batch.labels == left > 0
    assert batch.labels == sum(int((micro.targets["labels"] != IGNORE).sum()) for micro in batch.micro_batches)
    assert batch.labels < sum(int((each["labels"] != IGNORE).sum()) for each in samples)
    assert batch.tokens == sum(int(micro.inputs["attention_mask"].sum()) for micro in batch.micro_batches)


def test_a_first_label_and_a_single_token_count_nothing() -> None:
    collator = CausalLMCollator(8, pad_token_id=0, micro_batch_size=4)
    batch = step(collator, [sample(0, 3, [1, IGNORE, IGNORE]), sample(1, 1), sample(2, 2, [IGNORE, 2])])
    assert batch.labels == 1
    assert CausalLM().count(without_targets(collator.micro_batch([sample(0, 8)]), 0).targets) == 0


def test_wrong_samples_are_refused() -> None:
    collator = CausalLMCollator(8, pad_token_id=0, micro_batch_size=1)
    with pytest.raises(ValueError, match="9 tokens exceeds block_size=8"):
        collator([sample(0, 9)])
    with pytest.raises(ValueError, match="sample 4 has 2 labels for 3 tokens"):
        collator([sample(4, 3, [1, 2])])
    with pytest.raises(ValueError, match="micro_batch_size=0"):
        CausalLMCollator(8, pad_token_id=0, micro_batch_size=0)


def test_micro_batches_bear_the_positions_of_their_samples() -> None:
    """This holds for packed blocks and padded samples; a sample without a position has its index as one."""
    collator = CausalLMCollator(8, pad_token_id=0, micro_batch_size=2)
    for lengths in ((8, 8, 8), (8, 3, 5)):
        samples = [{**sample(index, length), "position": 100 + index} for index, length in enumerate(lengths)]
        assert [micro.samples.tolist() for micro in collator(samples)] == [[100, 101], [102]]
        assert collator.micro_batch(samples).samples.dtype == torch.int64
    assert collator.micro_batch([sample(7, 8), sample(2, 8)]).samples.tolist() == [7, 2]


def test_padding_rows_lose_their_targets() -> None:
    """Targets of every type and nesting are blanked; inputs, other rows and the original micro-batch stay."""
    targets = {
        "labels": torch.ones(3, 4, dtype=torch.int64),
        "scores": (torch.ones(3), [torch.ones(3, 2, dtype=torch.bool)]),
        "name": "unchanged",
    }
    micro = MicroBatch({"input_ids": torch.ones(3, 4)}, targets, torch.arange(3), 12)
    blank = without_targets(micro, 2)
    assert blank.targets["labels"].tolist() == [[1] * 4, [1] * 4, [IGNORE] * 4]
    scores, (chosen,) = blank.targets["scores"]
    assert scores[:2].tolist() == [1, 1] and bool(scores[2].isnan())
    assert chosen.tolist() == [[True, True], [True, True], [False, False]] and blank.targets["name"] == "unchanged"
    assert blank.samples.tolist() == [0, 1, -1]
    assert blank.inputs["input_ids"] is micro.inputs["input_ids"]
    assert targets["labels"].tolist() == [[1] * 4] * 3 and micro.samples.tolist() == [0, 1, 2]
    assert without_targets(micro, 3) is micro


def test_random_numbers_follow_from_seed_position_and_purpose() -> None:
    def numbers(seed: int, position: int, purpose: str) -> tuple[float, ...]:
        return tuple(draws(seed, position, purpose).random(4))

    torch.manual_seed(0)
    first = numbers(1, 2, "mask")
    np.random.seed(5)
    torch.manual_seed(5)
    numbers(1, 3, "mask")
    assert numbers(1, 2, "mask") == first
    near = [
        (1, 2, "mask"),
        (2, 2, "mask"),
        (1, 3, "mask"),
        (1, 2, "crop"),
        (12, 2, "mask"),
        (1, 12, "mask"),
        (0, -1, ""),
    ]
    assert len({numbers(*key) for key in near}) == len(near)
    many = np.array([draws(0, position, "mask").random() for position in range(2000)])
    assert abs(many.mean() - 0.5) < 0.03 and abs(np.corrcoef(many[:-1], many[1:])[0, 1]) < 0.08


def test_random_numbers_stay_the_same_in_later_versions() -> None:
    """A run that is resumed after an update of trireme draws the same numbers as before the update."""
    assert draws(0, 0, "mask").integers(0, 1 << 30, 3).tolist() == [380746789, 902595226, 337821741]
