"""Tests of the data loader: which samples each data-parallel rank gets, resuming at any step, worker processes, and
balanced evaluation batches.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from trireme.errors import UserError
from trireme.parallel.micro_batch import StepBatch
from trireme.trainer.data.collator import IGNORE, CausalLMCollator
from trireme.trainer.data.loader import Batcher, evaluation_batches, step_batches
from trireme.trainer.data.packed_rows import MemoryRows
from trireme.trainer.data.sample_order import EpochOrder
from trireme.trainer.tasks.causal_lm import CausalLM

SIZE, BLOCK, GLOBAL = 23, 8, 6  # an epoch ends in the middle of a batch, and of a rank's share
DATA = MemoryRows([{"input_ids": np.full(BLOCK, i, np.int32)} for i in range(SIZE)])


BATCHER = Batcher(CausalLMCollator(BLOCK, pad_token_id=0, micro_batch_size=1), CausalLM().count)


def batches(start: int = 0, stop: int = 9, **options: Any) -> list[StepBatch]:
    return list(
        step_batches(
            DATA,
            BATCHER,
            EpochOrder(SIZE, seed=1),
            samples=start * GLOBAL,
            steps=stop - start,
            global_batch_size=GLOBAL,
            **options,
        )
    )


def tokens(batch: StepBatch) -> list[list[int]]:
    return torch.cat([micro.inputs["input_ids"] for micro in batch.micro_batches]).tolist()


def positions(batch: StepBatch) -> list[int]:
    return torch.cat([micro.samples for micro in batch.micro_batches]).tolist()


def test_nothing_is_dropped_at_epoch_borders() -> None:
    seen = [index for batch in batches(stop=SIZE) for index in batch.samples]
    assert len(seen) == SIZE * GLOBAL
    for epoch in range(GLOBAL):
        assert sorted(seen[epoch * SIZE : (epoch + 1) * SIZE]) == list(range(SIZE))


@pytest.mark.parametrize("data_size", [2, 3, 6])
def test_shares_joined_are_the_batch_of_one_rank(data_size: int) -> None:
    shares = zip(*(batches(data_rank=rank, data_size=data_size) for rank in range(data_size)), strict=True)
    for parts, whole in zip(shares, batches(), strict=True):
        assert [index for part in parts for index in part.samples] == whole.samples
        assert [row for part in parts for row in tokens(part)] == tokens(whole)
        assert sum(part.labels for part in parts) == whole.labels
        assert sum(part.tokens for part in parts) == whole.tokens


@pytest.mark.parametrize("start", [1, 4, 8, 9])
def test_resuming_is_another_start(start: int) -> None:
    assert [tokens(batch) for batch in batches(start)] == [tokens(batch) for batch in batches()[start:]]


def test_another_batch_size_goes_on_at_the_right_sample() -> None:
    rest = step_batches(DATA, BATCHER, EpochOrder(SIZE, seed=1), samples=4 * GLOBAL, steps=10, global_batch_size=3)
    rest = list(rest)
    assert [position for batch in rest for position in positions(batch)] == list(range(4 * GLOBAL, 4 * GLOBAL + 30))
    before = [index for batch in batches() for index in batch.samples]
    assert [index for batch in rest for index in batch.samples] == before[4 * GLOBAL :]


@pytest.mark.parametrize("start", [0, 5])
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("data_size", [1, 3])
def test_positions_are_those_in_the_endless_stream(start: int, workers: int, data_size: int) -> None:
    """This holds across epochs, for all data ranks together, after a resume and with workers. So a collator, which
    draws at random by position, draws the same in all of these cases."""
    options = {"num_workers": workers, "data_size": data_size}
    shares = zip(*(batches(start, data_rank=rank, **options) for rank in range(data_size)), strict=True)
    order = EpochOrder(SIZE, seed=1)
    for number, parts in enumerate(shares, start):
        joined = [position for part in parts for position in positions(part)]
        assert joined == list(range(number * GLOBAL, (number + 1) * GLOBAL))
        assert order(np.array(joined)).tolist() == [index for part in parts for index in part.samples]
    assert (number + 1) * GLOBAL > 2 * SIZE, "the test must cross two epochs"


def test_samples_come_one_by_one_from_a_data_set_that_gives_no_lists() -> None:
    class Single:
        def __len__(self) -> int:
            return SIZE

        def __getitem__(self, index: int) -> Any:
            return DATA[index]

    found = list(
        step_batches(Single(), BATCHER, EpochOrder(SIZE, seed=1), samples=0, steps=9, global_batch_size=GLOBAL)  # type: ignore[arg-type]
    )
    assert [(tokens(batch), positions(batch)) for batch in found] == [
        (tokens(batch), positions(batch)) for batch in batches()
    ]


def test_many_steps_ordered_together_equal_single_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    together = [batch.samples for batch in batches()]
    monkeypatch.setattr("trireme.trainer.data.loader.POSITIONS_AT_ONCE", 1)
    assert [batch.samples for batch in batches()] == together


def test_workers_give_the_same_batches() -> None:
    assert [tokens(batch) for batch in batches(num_workers=2)] == [tokens(batch) for batch in batches()]


class Broken(MemoryRows):
    def __getitem__(self, index: int) -> Any:
        raise UserError("row 7 is not usable")

    __getitems__ = None


def test_an_error_of_a_row_comes_back_whole_from_a_worker() -> None:
    """The user sees the error's own words, not a traceback in a string."""
    options = {"samples": 0, "steps": 1, "global_batch_size": GLOBAL}
    (found,) = step_batches(Broken(DATA.rows), BATCHER, EpochOrder(SIZE, seed=1), num_workers=1, **options)
    assert isinstance(found, UserError) and str(found) == "row 7 is not usable"
    with pytest.raises(UserError, match=r"^row 7 is not usable$"):
        list(step_batches(Broken(DATA.rows), BATCHER, EpochOrder(SIZE, seed=1), **options))


@pytest.mark.parametrize("workers", [0, 1])
def test_the_global_generator_is_left_alone(workers: int) -> None:
    before = torch.random.get_rng_state()
    batches(stop=2, num_workers=workers)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="global_batch_size=6 does not divide over 4"):
        batches(data_size=4)


@pytest.mark.parametrize(
    ("limit", "micro", "data_size"), [(None, 4, 1), (None, 4, 2), (10, 3, 2), (1, 4, 3), (99, 5, 4)]
)
def test_evaluation_counts_every_sample_once_and_is_even(limit: int | None, micro: int, data_size: int) -> None:
    collator = CausalLMCollator(BLOCK, pad_token_id=0, micro_batch_size=micro)
    ranks = [
        list(
            evaluation_batches(DATA, collator, limit=limit, micro_batch_size=micro, data_rank=rank, data_size=data_size)
        )
        for rank in range(data_size)
    ]
    assert len({len(rank) for rank in ranks}) == 1
    assert {batch.inputs["input_ids"].shape for rank in ranks for batch in rank} == {(micro, BLOCK)}
    counted = [
        int(ids[0])
        for rank in ranks
        for batch in rank
        for ids, labels in zip(batch.inputs["input_ids"], batch.targets["labels"], strict=True)
        if (labels != IGNORE).any()
    ]
    for batch in (batch for rank in ranks for batch in rank):  # a filler has no position and no labels
        filled = (batch.targets["labels"] == IGNORE).all(1)
        wanted = torch.where(filled, -1, batch.inputs["input_ids"][:, 0])
        assert batch.samples.tolist() == wanted.tolist()
    assert sorted(counted) == list(range(min(limit or SIZE, SIZE)))


def test_evaluation_of_nothing_gives_nothing() -> None:
    collator = CausalLMCollator(BLOCK, pad_token_id=0, micro_batch_size=2)
    assert list(evaluation_batches(MemoryRows([]), collator, micro_batch_size=2)) == []
