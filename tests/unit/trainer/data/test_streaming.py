"""Tests of streamed data: the same blocks as prepared data, one order on any number of ranks, exact resumes, held-out
samples, and errors while streaming.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from trireme.errors import UserError
from trireme.parallel.micro_batch import StepBatch
from trireme.trainer.data.collator import IGNORE
from trireme.trainer.data.corpus import Corpus
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.open_corpus import open_corpus
from trireme.trainer.settings import TrainerConfig
from trireme.trainer.tasks.causal_lm import CausalLM

FILES = "trireme.trainer.data.sources.Files"
Make = Callable[..., DataConfig]
GLOBAL = 8  # samples of a step, as in the settings of conftest.py
STEPS = 90
"""More than two epochs of about 330 blocks at 8 per step."""


@pytest.fixture
def streaming(data_config: Make, tmp_path: Path, documents: list[str]) -> Make:
    """Three files of documents, so that the stream has several shards."""
    paths = []
    for number in range(3):
        path = tmp_path / f"part{number}.jsonl"
        texts = ["", *documents[number * 40 : number * 40 + 40]]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        paths.append(str(path))
    source = {"_target_": FILES, "paths": paths}
    defaults = {"source": source, "streaming": True, "deduplicate": False, "block_size": 128, "shuffle_window": 37}
    return lambda **options: data_config(**defaults | options)


def rows(batch: StepBatch) -> list[Any]:
    return [batch.samples, [micro.inputs["input_ids"].tolist() for micro in batch.micro_batches]]


def take(corpus: Corpus, steps: int = STEPS, **options: Any) -> list[Any]:
    return [rows(batch) for batch in corpus.train_batches({}, 0, steps, **options)]


def test_an_epoch_holds_every_block_once_and_the_next_is_mixed_anew(streaming: Make, settings: TrainerConfig) -> None:
    plain = open_corpus(streaming(shuffle=False), 0, settings, CausalLM())
    mixed = open_corpus(streaming(), 0, settings, CausalLM())
    blocks = {
        name: [
            (index, tuple(ids))
            for samples, micros in take(corpus)
            for index, ids in zip(samples, [ids for micro in micros for ids in micro], strict=True)
        ]
        for name, corpus in (("plain", plain), ("mixed", mixed))
    }
    epoch = [index for index, _ in blocks["plain"]].index(0, 1)
    assert 2 * epoch < STEPS * 8, "the test must cross two epochs"
    assert [index for index, _ in blocks["plain"][:epoch]] == list(range(epoch))
    first, second = blocks["mixed"][:epoch], blocks["mixed"][epoch : 2 * epoch]
    assert sorted(first) == sorted(second) == sorted(blocks["plain"][:epoch])
    assert first != second and first != blocks["plain"][:epoch]
    assert {index for index, _ in first[:37]} == set(range(37))  # shuffled within the window


def test_a_stream_gives_the_blocks_of_prepared_data(streaming: Make, settings: TrainerConfig) -> None:
    options = {"shuffle": False, "held_out": 0.2}
    stream = open_corpus(streaming(**options), 0, settings, CausalLM())
    stream.tokenizer.save_pretrained(path := Path(stream.config.cache_dir or "") / "mine")
    from trireme.trainer.data.tokenizer import TokenizerConfig

    tokenizer = TokenizerConfig(path=str(path))
    indexed = open_corpus(streaming(streaming=False, tokenizer=tokenizer, **options), 0, settings, CausalLM())
    assert indexed.train_size
    assert take(stream, indexed.train_size // 8) == take(indexed, indexed.train_size // 8)
    assert [micro.inputs["input_ids"].tolist() for micro in stream.eval_batches(7)] == [
        micro.inputs["input_ids"].tolist() for micro in indexed.eval_batches(7)
    ]


@pytest.mark.parametrize("packing", [True, False])
def test_resume_is_exact_at_any_step(streaming: Make, settings: TrainerConfig, packing: bool) -> None:
    corpus = open_corpus(streaming(packing=packing, block_size=128 if packing else 16), 3, settings, CausalLM())
    whole, states = [], []
    batches = corpus.train_batches({}, 0, STEPS)
    for batch in batches:
        whole.append(rows(batch))
        states.append(json.loads(json.dumps(batches.state())))
    borders = [step for step in range(1, STEPS) if states[step]["epoch"] != states[step - 1]["epoch"]]
    assert borders, "the test must cross an epoch"
    assert max(len(json.dumps(state)) for state in states) < 2000
    cuts = {1, borders[0] - 1, borders[0], borders[0] + 1, *random.Random(0).sample(range(1, STEPS), 6)}
    for cut in sorted(cuts):
        resumed = corpus.train_batches(states[cut - 1], cut * GLOBAL, min(12, STEPS - cut))
        assert resumed.state() == states[cut - 1]
        assert [rows(batch) for batch in resumed] == whole[cut : cut + 12]
        if cut + 12 <= STEPS:
            assert resumed.state() == states[min(cut + 12, STEPS) - 1]


def test_ranks_share_one_order_and_one_position(streaming: Make, settings: TrainerConfig) -> None:
    corpus = open_corpus(streaming(), 0, settings, CausalLM())
    whole = [samples for samples, _ in take(corpus, 60)]
    two = [corpus.train_batches({}, 0, 30, rank, 2) for rank in range(2)]
    joined = [left.samples + right.samples for left, right in zip(*two, strict=True)]
    assert joined == whole[:30]
    assert two[0].state() == two[1].state()
    four = [corpus.train_batches(two[0].state(), 30 * GLOBAL, 30, rank, 4) for rank in range(4)]  # another world size
    assert [[index for part in parts for index in part.samples] for parts in zip(*four, strict=True)] == whole[30:]


def test_positions_are_those_in_the_endless_stream(streaming: Make, settings: TrainerConfig) -> None:
    """This holds across passes, for all data ranks together, and after a resume with another number of ranks."""
    corpus = open_corpus(streaming(), 0, settings, CausalLM())

    def positions(batch: StepBatch) -> list[int]:
        return [place for micro in batch.micro_batches for place in micro.samples.tolist()]

    two = [corpus.train_batches({}, 0, STEPS - 5, rank, 2) for rank in range(2)]
    joined = [positions(left) + positions(right) for left, right in zip(*two, strict=True)]
    state = two[0].state()
    assert state["epoch"] > 0, "the test must cross an epoch"
    joined += [positions(batch) for batch in corpus.train_batches(state, (STEPS - 5) * GLOBAL, 5)]
    assert [place for step in joined for place in step] == list(range(STEPS * GLOBAL))
    read_again = corpus.train_batches({}, 50 * GLOBAL, 1)
    assert positions(next(read_again)) == list(range(50 * GLOBAL, 51 * GLOBAL))


def test_a_resume_without_a_state_reads_from_the_start(streaming: Make, settings: TrainerConfig) -> None:
    corpus = open_corpus(streaming(), 0, settings, CausalLM())
    assert [rows(batch) for batch in corpus.train_batches({}, 50 * GLOBAL, 5)] == take(corpus, 55)[50:]


def test_the_seed_decides_the_order(streaming: Make, settings: TrainerConfig) -> None:
    assert take(open_corpus(streaming(), 0, settings, CausalLM()), 5) != take(
        open_corpus(streaming(), 1, settings, CausalLM()), 5
    )


def test_evaluation_is_held_out_even_and_known_beforehand(streaming: Make, settings: TrainerConfig) -> None:
    corpus = open_corpus(streaming(held_out=0.2), 0, settings, CausalLM())
    assert corpus.train_size is None and corpus.stats.unigram_entropy and corpus.stats.held_out_blocks == 7
    ranks = [list(corpus.eval_batches(7, rank, 2)) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [2, 2]
    assert sum(int((micro.targets["labels"] != IGNORE).any(1).sum()) for rank in ranks for micro in rank) == 7
    assert len(list(corpus.eval_batches(12))) == 6  # more than were collected at first


def test_an_evaluation_source_of_its_own(streaming: Make, settings: TrainerConfig, tmp_path: Path) -> None:
    (tmp_path / "eval.txt").write_text("evaluation text " * 200)
    corpus = open_corpus(
        streaming(eval_source={"_target_": FILES, "paths": [str(tmp_path / "eval.txt")]}), 0, settings, CausalLM()
    )
    assert corpus.tokenizer.decode(next(corpus.eval_batches(3)).inputs["input_ids"][0]).startswith("evaluation text")


def test_nothing_held_out(streaming: Make) -> None:
    corpus = open_corpus(streaming(held_out=0.0), 0, TrainerConfig(max_steps=1), CausalLM())
    assert not corpus.has_held_out and list(corpus.eval_batches(None)) == []


def test_an_evaluation_without_end_is_refused_before_training(streaming: Make) -> None:
    with pytest.raises(UserError, match=r"trainer\.eval_samples"):
        open_corpus(streaming(), 0, TrainerConfig(max_steps=1), CausalLM())


def test_a_state_of_other_settings_is_refused(streaming: Make, settings: TrainerConfig) -> None:
    batches = open_corpus(streaming(), 0, settings, CausalLM()).train_batches({}, 0, 3)
    next(batches)
    other = open_corpus(streaming(block_size=64, shuffle_window=12), 0, settings, CausalLM())
    with pytest.raises(UserError) as caught:
        other.train_batches(batches.state(), GLOBAL, 2)
    assert "data.block_size=128" in str(caught.value) and "data.shuffle_window=37" in str(caught.value)


def test_a_source_that_shrank_is_refused(streaming: Make, settings: TrainerConfig) -> None:
    corpus = open_corpus(streaming(), 0, settings, CausalLM())
    batches = corpus.train_batches({}, 0, 3)
    list(batches)
    for path in corpus.config.source["paths"]:
        Path(path).write_text(json.dumps({"text": "short"}) + "\n")
    with pytest.raises(UserError, match="shorter than it was"):
        corpus.train_batches(batches.state(), 3 * GLOBAL, 1)


def test_a_stream_shorter_than_a_block(streaming: Make, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("short")
    source = {"_target_": FILES, "paths": [str(tmp_path / "short.txt")]}
    corpus = open_corpus(streaming(source=source, held_out=0.0), 0, TrainerConfig(max_steps=1), CausalLM())
    with pytest.raises(UserError, match=r"data\.block_size = 128"):
        next(corpus.train_batches({}, 0, 1))


def test_bad_files_are_named_while_streaming(streaming: Make, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    source = {"_target_": FILES, "paths": [str(tmp_path / "bad.jsonl")]}
    with pytest.raises(UserError, match="line 2, column"):
        open_corpus(streaming(source=source, held_out=0.0), 0, TrainerConfig(max_steps=1), CausalLM())


def test_python_sources_refuse_to_stream(streaming: Make, settings: TrainerConfig) -> None:
    with pytest.raises(UserError, match="data=files_streaming"):
        open_corpus(
            streaming(source={"_target_": "trireme.trainer.data.sources.PythonSources"}), 0, settings, CausalLM()
        )
