"""Tests of packing several documents into one row: documents of files, streams and mixtures, their labels, exact
resumes, and collators that would mix the documents of a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import pytest
from trireme.errors import UserError
from trireme.models.facts import Facts
from trireme.parallel.micro_batch import MicroBatch, StepBatch
from trireme.trainer.data.collator import CausalLMCollator
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.loader import Batcher
from trireme.trainer.data.mixed_source import MixedSource
from trireme.trainer.data.open_corpus import open_corpus
from trireme.trainer.data.packed_rows import packed
from trireme.trainer.data.report.views import Collated
from trireme.trainer.data.samples import Given, Samples
from trireme.trainer.data.text_rows import text_processor
from trireme.trainer.data.text_values import vocabulary_of
from trireme.trainer.settings import TrainerConfig
from trireme.trainer.tasks.causal_lm import CausalLM

Make = Callable[..., DataConfig]
STREAM = {"streaming": True, "deduplicate": False, "shuffle_window": 9}


def micros(batches: Iterable[StepBatch]) -> list[MicroBatch]:
    return [micro for batch in batches for micro in batch.micro_batches]


def documents_of(found: Iterable[MicroBatch]) -> list[tuple[int, ...]]:
    """The tokens of every document, separated by ``documents``; asserts that positions restart in each document."""
    documents = []
    for micro in found:
        assert micro.documents is not None
        for ids, numbers, places in zip(
            micro.inputs["input_ids"], micro.documents, micro.inputs["position_ids"], strict=True
        ):
            for number in dict.fromkeys(numbers.tolist()):
                chosen = numbers == number
                assert places[chosen].tolist() == list(range(int(chosen.sum())))
                if number >= 0:
                    documents.append(tuple(ids[chosen].tolist()))
    return documents


def key(batch: StepBatch) -> list[Any]:
    return [[m.inputs["input_ids"].tolist(), m.documents.tolist(), m.samples.tolist()] for m in batch.micro_batches]


@pytest.mark.parametrize("overflow", ["cut", "split", "drop"])
def test_a_pass_over_bins_holds_every_document_once(data_config: Make, settings: TrainerConfig, overflow: str) -> None:
    alone = open_corpus(data_config(packing=False, block_size=2**20), 0, settings, CausalLM())
    wanted = [tuple(alone.train[i]["input_ids"].tolist()) for i in range(len(alone.train))]
    parts = {"cut": lambda text: [text[:256]], "drop": lambda text: [text] if len(text) <= 256 else []}
    parts["split"] = lambda text: [text[at : at + 256] for at in range(0, len(text), 256)]
    wanted = [part for text in wanted for part in parts[overflow](text)]
    corpus = open_corpus(data_config(packing="bins", block_size=256, overflow=overflow), 0, settings, CausalLM())
    size = corpus.train_size
    passes = []
    for first in (0, size):
        batches = corpus.train_batches({}, first, -(-size // 8))
        rows = [row for micro in micros(batches) for row in micro.map(lambda t: t).samples.tolist()]
        assert rows[:size] == list(range(first, first + size))
        found = [corpus.train[int(index)] for index in corpus.order(np.arange(first, first + size))]
        passes.append(
            [tuple(map(int, np.split(s["input_ids"], np.flatnonzero(s["position_ids"] == 0)[1:])[0])) for s in found]
        )
        texts = [
            tuple(part.tolist())
            for s in found
            for part in np.split(s["input_ids"], np.flatnonzero(s["position_ids"] == 0)[1:])
        ]
        assert Counter(texts) == Counter(wanted)
    assert passes[0] != passes[1]
    assert corpus.train.bins.fill > 0.9
    assert corpus.stats.train_tokens_cut == sum(map(len, alone_texts(alone))) - sum(map(len, wanted))


def alone_texts(corpus: Any) -> list[np.ndarray]:
    return [corpus.train[i]["input_ids"] for i in range(len(corpus.train))]


@pytest.mark.parametrize("packing", ["bins", "separate_blocks"])
@pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streamed"])
def test_a_resume_within_a_pass_is_exact(
    data_config: Make, settings: TrainerConfig, streaming: bool, packing: str
) -> None:
    options = {**(STREAM if streaming else {}), "packing": packing, "block_size": 256}
    corpus = open_corpus(data_config(**options), 3, settings, CausalLM())
    run = corpus.train_batches({}, 0, 14)
    expected, states = [], []
    for batch in run:
        expected.append(key(batch))
        states.append(run.state())
    for step in (0, 5, 9):
        again = open_corpus(data_config(**options), 3, settings, CausalLM())
        assert [key(batch) for batch in again.train_batches(states[step], 8 * (step + 1), 13 - step)] == expected[
            step + 1 :
        ]
    shares = [
        open_corpus(data_config(**options), 3, settings, CausalLM()).train_batches({}, 0, 14, rank, 2)
        for rank in (0, 1)
    ]
    assert [key(a) + key(b) for a, b in zip(*shares, strict=True)] == expected
    numbers = [
        number
        for step in expected[:2]
        for part in step
        for row in part[1]
        for number in dict.fromkeys(row)
        if number >= 0
    ]
    assert len(set(numbers)) == len(numbers)


def test_separate_blocks_hold_the_tokens_of_blocks(data_config: Make, settings: TrainerConfig) -> None:
    together, apart = (
        open_corpus(data_config(packing=how), 0, settings, CausalLM()) for how in (True, "separate_blocks")
    )
    end = together.tokenizer.eos_token_id
    assert len(together.train) == len(apart.train)
    for index in range(len(together.train)):
        ids = together.train[index]["input_ids"]
        assert apart.train[index]["input_ids"].tolist() == ids.tolist()
        starts = np.flatnonzero(apart.train[index]["position_ids"] == 0)
        assert starts.tolist() == [0, *(np.flatnonzero(ids[:-1] == end) + 1)]


def test_separate_blocks_of_a_stream(data_config: Make, settings: TrainerConfig) -> None:
    corpus = open_corpus(data_config(**STREAM, packing="separate_blocks"), 0, settings, CausalLM())
    end = corpus.tokenizer.eos_token_id
    for micro in micros(islice(corpus.train_batches({}, 0, 20), 20)):
        for ids, places in zip(micro.inputs["input_ids"], micro.inputs["position_ids"], strict=True):
            assert (places == 0).nonzero().flatten().tolist() == [
                0,
                *((ids[:-1] == end).nonzero().flatten() + 1).tolist(),
            ]


def test_bins_of_a_stream_hold_its_documents(data_config: Make, settings: TrainerConfig, documents: list[str]) -> None:
    corpus = open_corpus(data_config(**STREAM, packing="bins", block_size=512), 0, settings, CausalLM())
    found = documents_of(micros(corpus.train_batches({}, 0, 3)))
    texts = [corpus.tokenizer.decode(ids, skip_special_tokens=True) for ids in found]
    assert len(texts) > 40 and len(set(texts)) == len(texts)
    assert all(text in documents or any(one.startswith(text) for one in documents) for text in texts)


def test_mixtures_share_out_rows(data_config: Make, settings: TrainerConfig) -> None:
    source = data_config().source
    sources = {"one": MixedSource(source, 3), "two": MixedSource(source, 1)}
    corpus = open_corpus(
        data_config(source=None, sources=sources, packing="bins", block_size=256), 0, settings, CausalLM()
    )
    found = micros(corpus.train_batches({}, 0, 3 * corpus.train_size // 8))
    assert Counter(n for m in found for n in corpus.sources_of(m.samples.tolist()))[0] == pytest.approx(
        0.75 * 8 * (3 * corpus.train_size // 8), abs=1
    )
    numbers = [
        number for micro in found for row in micro.documents.tolist() for number in dict.fromkeys(row) if number >= 0
    ]
    assert len(set(numbers)) == len(numbers)


class Turns(Samples):
    """Texts with labels on their second half."""

    columns: ClassVar[dict[str, bool]] = {"text": True}

    def __init__(self, given: Given) -> None:
        self.processor = text_processor(given, "text")
        self.facts, self.length = Facts(vocabulary_of(self.processor)), given.config.block_size

    def sample(self, row: dict[str, Any]) -> dict[str, Any]:
        tokens = np.array(self.processor(row["text"])["input_ids"])[: self.length]
        return {"input_ids": tokens, "labels": np.where(np.arange(len(tokens)) < len(tokens) // 2, -100, tokens)}

    def lengths(self, rows: Any) -> dict[str, list[float]]:
        return {"tokens": [len(ids) for ids in self.processor(rows["text"])["input_ids"]]}


class LearnsTurns(CausalLM):
    samples = f"{__name__}.Turns"


def of_rows(
    data_config: Make, corpus_file: Any, settings: TrainerConfig, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> Any:
    monkeypatch.setattr("trireme.trainer.data.open_samples.open_samples", lambda path, given: Turns)
    rows = {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": [str(corpus_file)]}
    return open_corpus(data_config(source=rows, **options), 0, settings, LearnsTurns())


def test_rows_are_packed_with_their_labels(
    data_config: Make, corpus_file: Any, settings: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = of_rows(data_config, corpus_file, settings, monkeypatch, packing="bins", block_size=256)
    wanted = Counter(
        tuple(sample["input_ids"].tolist()) for sample in (corpus.rows[i] for i in range(len(corpus.rows)))
    )
    found = [corpus.train[index] for index in range(len(corpus.train))]
    assert (
        Counter(
            tuple(part.tolist())
            for s in found
            for part in np.split(s["input_ids"], np.flatnonzero(s["position_ids"] == 0)[1:])
        )
        == wanted
    )
    micro = CausalLMCollator(256, 0, 4).micro_batch(found[:4])
    starts = micro.inputs["position_ids"] == 0
    assert (micro.targets["labels"] != -100).any() and not (micro.targets["labels"][:, :-1] != -100)[
        starts[:, 1:]
    ].any()
    assert len(corpus.held_out[0].keys() & {"documents"}) == 0  # evaluated one by one


def test_rows_are_grouped_by_length(
    data_config: Make, corpus_file: Any, settings: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = []
    for grouped in (True, False):
        corpus = of_rows(data_config, corpus_file, settings, monkeypatch, group_by_length=grouped, block_size=512)
        found = micros(corpus.train_batches({}, 0, 20))
        shares.append(sum(m.length for m in found) / sum(m.inputs["input_ids"].numel() for m in found))
    assert shares[0] > 0.8 > shares[1]


def test_a_collator_that_mixes_documents_is_refused() -> None:
    class Ignores(CausalLMCollator):
        def __call__(self, samples: Any) -> list[MicroBatch]:
            return super().__call__([{"input_ids": sample["input_ids"], "index": 0} for sample in samples])

    samples = [{**packed([np.arange(3), np.arange(4)], np.arange(2)), "index": 0}]
    assert Batcher(CausalLMCollator(8, 0, 1), CausalLM().count)(samples).labels == 5
    with pytest.raises(UserError, match="would see each other"):
        Batcher(Ignores(8, 0, 1), CausalLM().count)(samples)


def test_the_documents_of_a_row_are_shown_apart(data_config: Make, settings: TrainerConfig) -> None:
    corpus = open_corpus(data_config(packing="bins", block_size=512, overflow="split"), 0, settings, CausalLM())
    assert f"{len(corpus.train)} rows of 512 tokens" in " ".join(corpus.describe("train").notes)
    micro = next(corpus.train_batches({}, 0, 1)).micro_batches[0]
    inputs, targets = (
        {name: tensor[0].numpy() for name, tensor in tree.items()} for tree in (micro.inputs, micro.targets)
    )
    views = corpus.views(Collated(inputs, targets, 0, 0, "causal_lm"))
    starts = np.flatnonzero(inputs["position_ids"] == 0).tolist()
    count = len(starts) - 1
    names = [f"document {number} of {count}" for number in range(1, count + 1)]
    assert list(views) == [f"input_ids, {name}" for name in (*names, "padding")]
    assert [view.count for view in views.values()] == np.diff([*starts, 512]).tolist()
