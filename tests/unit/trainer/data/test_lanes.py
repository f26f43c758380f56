"""Tests of ``data.packing=lanes``: each row of a batch continues the text of the same row in the previous batch.

The text is divided into as many lanes as a step has samples; evaluations use lanes too.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.recipes import tiny_recipe
from trireme.errors import UserError
from trireme.models.loss import IGNORE
from trireme.parallel.micro_batch import MicroBatch, Place
from trireme.trainer.data.collator import CausalLMCollator
from trireme.trainer.data.lanes import LaneBlocks, Lanes, evaluation_lanes
from trireme.trainer.data.loader import Batcher, step_batches
from trireme.trainer.data.token_files import Column, write_column
from trireme.trainer.recipe_corpus import recipe_corpus

BLOCK = 4


def blocks(tmp_path: Path, tokens: int) -> LaneBlocks:
    path = str(tmp_path / "tokens.arrow")
    write_column(path, [np.arange(tokens)], np.int32)
    return LaneBlocks(Column(path), BLOCK)


def collator(micro_batch_size: int) -> CausalLMCollator:
    return CausalLMCollator(block_size=BLOCK, pad_token_id=0, micro_batch_size=micro_batch_size)


def test_rows_go_on_where_they_ended_whatever_the_ranks_are(tmp_path: Path) -> None:
    data = blocks(tmp_path, 4 * BLOCK * 3 + 3)
    lanes = Lanes(4, len(data) // 4)
    assert (lanes.length, lanes.size) == (3, 12)

    def steps(ranks: int, micro: int) -> list[list[tuple[list[int], Place]]]:
        parts = [
            step_batches(
                data,
                Batcher(collator(micro), lambda targets: int((targets["labels"] != IGNORE).sum()), lanes.marked),
                lanes,
                samples=0,
                steps=4,
                global_batch_size=4,
                data_rank=rank,
                data_size=ranks,
            )
            for rank in range(ranks)
        ]
        found = []
        for shares in zip(*parts, strict=True):
            micros = [micro for share in shares for micro in share.micro_batches]  # type: ignore[union-attr]
            assert sum(share.labels for share in shares) == 4 * BLOCK  # type: ignore[union-attr]
            found.append([row for micro in micros for row in _rows(micro)])
        return found

    whole = steps(1, 4)
    assert steps(2, 2) == whole == steps(2, 1) == steps(4, 1)
    for number, step in enumerate(whole):
        for lane, (tokens, place) in enumerate(step):
            begin = lane * 3 * BLOCK + number % 3 * BLOCK
            assert tokens == list(range(begin, begin + BLOCK + 1))  # the last one is a label
            position = number * 4 + lane
            assert place == Place(lane, position, position - 4 if number % 3 else -1)


def _rows(micro: MicroBatch) -> list[tuple[list[int], Place]]:
    assert micro.lanes is not None
    rows = zip(micro.inputs["input_ids"].tolist(), micro.targets["labels"].tolist(), micro.lanes, strict=True)
    return [([*tokens, labels[-1]], place) for tokens, labels, place in rows if labels[:-1] == tokens[1:]]


@pytest.mark.parametrize(("ranks", "micro", "limit"), [(1, 4, None), (2, 2, None), (2, 1, 7), (3, 2, 7), (1, 3, 2)])
def test_an_evaluation_takes_each_sample_once_in_its_lane(
    tmp_path: Path, ranks: int, micro: int, limit: int | None
) -> None:
    data = blocks(tmp_path, 10 * BLOCK + 1)
    parts = [
        list(
            evaluation_lanes(
                data, collator(micro), lanes=4, limit=limit, micro_batch_size=micro, data_rank=rank, data_size=ranks
            )
        )
        for rank in range(ranks)
    ]
    assert len({len(part) for part in parts}) == 1
    last: dict[int, int] = {}
    seen = []
    for batches in zip(*parts, strict=True):
        for one in batches:
            assert one.rows == micro and one.lanes is not None
            for row, place in enumerate(one.lanes):
                labels = one.targets["labels"][row]
                assert int(one.samples[row]) == place.position
                if place.lane < 0:
                    assert bool((labels == IGNORE).all())
                    continue
                assert one.inputs["input_ids"][row, 0] == place.position * BLOCK and bool((labels != IGNORE).all())
                assert place.follows == last.get(place.lane, -1)
                last[place.lane] = place.position
                seen.append(place.position)
    assert sorted(seen) == list(range(limit or 10))


def test_a_corpus_in_lanes_predicts_every_token_of_a_lane(tmp_path: Path) -> None:
    recipe = tiny_recipe(tmp_path / "run", "model=transformer_xl_tiny", "data.packing=lanes")
    corpus = recipe_corpus(recipe, recipe.data)
    assert corpus.lanes is not None and corpus.train_size == corpus.lanes.size
    first, second = (next_batch for next_batch in corpus.train_batches({}, 0, 2))
    begun, going = (
        torch.cat([micro.inputs["input_ids"] for micro in batch.micro_batches]) for batch in (first, second)
    )
    labels = torch.cat([micro.targets["labels"] for micro in first.micro_batches])
    assert torch.equal(labels[:, -1], going[:, 0]) and torch.equal(labels[:, :-1], begun[:, 1:])


def test_a_text_that_is_too_short_for_its_lanes_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        tmp_path / "run",
        *("model=transformer_xl_tiny", "data.packing=lanes", "data.block_size=4096"),
        *("trainer.global_batch_size=256", "trainer.micro_batch_size=1"),
    )
    with pytest.raises(UserError, match="cuts the text into 256 lanes, one for each sample of a step, but it has only"):
        recipe_corpus(recipe, recipe.data)
