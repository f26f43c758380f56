"""Tests of training on several data sources: how many samples each source gives, epochs, resuming, evaluation, caching,
and sources that are refused.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, Value
from trireme.errors import UserError
from trireme.parallel.micro_batch import StepBatch
from trireme.trainer.data.corpus import Corpus
from trireme.trainer.data.corpus_stats import Stats
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.mixed_rows import joined_rows, with_named_labels
from trireme.trainer.data.mixed_source import MixedSource
from trireme.trainer.data.mixture import IndexedMixture, Mixture, StreamedMixture
from trireme.trainer.data.open_corpus import open_corpus
from trireme.trainer.data.open_mixture import in_turn
from trireme.trainer.data.prepare_rows import PreparedRows
from trireme.trainer.data.tokenizer import TokenizerConfig
from trireme.trainer.settings import TrainerConfig
from trireme.trainer.tasks.causal_lm import CausalLM
from trireme.trainer.tasks.sequence_classification import SequenceClassification

FILES, ROWS = "trireme.trainer.data.sources.Files", "trireme.trainer.data.row_files.RowFiles"
GLOBAL = 8
Make = Callable[..., DataConfig]


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def mixed(data_config: Make, tmp_path: Path, documents: list[str]) -> Make:
    """Two sources, one with capital letters only, so that the source of a sample can be recognised."""
    plain = jsonl(tmp_path / "plain.jsonl", [{"text": text.lower()} for text in documents[:60]])
    loud = jsonl(tmp_path / "loud.jsonl", [{"text": text.upper()} for text in documents[60:80]])
    sources = {
        "plain": MixedSource({"_target_": FILES, "paths": [plain]}, 3),
        "loud": MixedSource({"_target_": FILES, "paths": [loud]}),
    }

    def make(**options: Any) -> DataConfig:
        streams = {"streaming": True, "deduplicate": False, "shuffle_window": 17} if options.get("streaming") else {}
        return data_config(source=None, sources=sources, **streams | options)

    return make


def opened(config: DataConfig, settings: TrainerConfig, seed: int = 0) -> Any:
    corpus = open_corpus(config, seed, settings, CausalLM())
    assert isinstance(corpus, Mixture) and corpus.mixture is corpus
    return corpus


def rows(batch: StepBatch) -> list[Any]:
    return [[micro.inputs["input_ids"].tolist(), micro.samples.tolist()] for micro in batch.micro_batches]


def blocks(batches: Iterable[StepBatch]) -> list[tuple[int, ...]]:
    micros = (micro for batch in batches for micro in batch.micro_batches)
    return [tuple(ids) for micro in micros for ids in micro.inputs["input_ids"].tolist()]


def loud(corpus: Corpus, ids: list[int]) -> bool:
    text = corpus.tokenizer.decode(ids)
    return sum(map(str.isupper, text)) > sum(map(str.islower, text))


@pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streamed"])
@pytest.mark.parametrize("packing", [True, False], ids=["packed", "documents"])
def test_every_position_holds_a_sample_of_its_source(
    mixed: Make, settings: TrainerConfig, streaming: bool, packing: bool
) -> None:
    corpus = opened(mixed(streaming=streaming, packing=packing), settings)
    assert isinstance(corpus, StreamedMixture if streaming else IndexedMixture)
    assert corpus.names == ["loud", "plain"] and corpus.shares == {"loud": 0.25, "plain": 0.75}
    found = []
    for batch in corpus.train_batches({}, 0, 30):
        for micro in batch.micro_batches:
            kinds = [corpus.names[number] for number in corpus.sources_of(micro.samples.tolist())]
            found += kinds
            for kind, ids in zip(kinds, micro.inputs["input_ids"].tolist(), strict=True):
                assert loud(corpus, ids) == (kind == "loud")
    assert Counter(found) == {"plain": 180, "loud": 60}
    for first in range(0, 240 - 20):
        assert abs(found[first : first + 20].count("loud") - 5) <= 1


@pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streamed"])
def test_resume_is_exact_at_any_step_for_any_number_of_ranks(
    mixed: Make, settings: TrainerConfig, streaming: bool
) -> None:
    corpus, steps = opened(mixed(streaming=streaming, block_size=128), settings), 70
    whole, states = [], [{}]
    batches = corpus.train_batches({}, 0, steps)
    for batch in batches:
        whole.append(rows(batch))
        states.append(json.loads(json.dumps(batches.state())))
    passes = states[-1]["sources"]["loud"]["epoch"] if streaming else steps * 2 // corpus.parts[0].train_size
    assert passes >= 2, "the test must cross passes of the small source"
    for cut in (1, 7, 23, 27, 69):
        resumed = corpus.train_batches(states[cut], cut * GLOBAL, min(10, steps - cut))
        assert [rows(batch) for batch in resumed] == whole[cut : cut + 10]
    ranks = [corpus.train_batches(states[7], 7 * GLOBAL, 5, rank, 2) for rank in range(2)]
    assert [rows(one) + rows(other) for one, other in zip(*ranks, strict=True)] == whole[7:12]
    if streaming:
        again = corpus.train_batches({}, 7 * GLOBAL, 3)  # without a saved position, streams are read from the start
        assert [rows(batch) for batch in again] == whole[7:10]


def test_a_pass_is_as_long_as_all_sources_together(mixed: Make, settings: TrainerConfig) -> None:
    corpus = opened(mixed(), settings)
    sizes = {name: len(part.train) for name, part in zip(corpus.names, corpus.parts, strict=True)}
    assert corpus.train_size == len(corpus.train) == sum(sizes.values())
    first, second = corpus.lines(800)
    passes = f"{200 / sizes['loud']:.3g} passes over its {sizes['loud']}"
    assert first == f"source loud: 25.00% of the samples, 200 in this run: {passes}"
    assert second.startswith("source plain: 75.00% of the samples, 600 in this run")
    streamed = list(opened(mixed(streaming=True), settings).lines(800))
    assert streamed[0] == "source loud: 25.00% of the samples, 200 in this run"


def test_other_weights_prepare_nothing_anew(mixed: Make, settings: TrainerConfig, tmp_path: Path) -> None:
    first = opened(mixed(), settings)
    entries = {path.name for path in (tmp_path / "cache").iterdir()}
    config = mixed()
    config.sources["loud"] = dataclasses.replace(config.sources["loud"], weight=5)
    second = opened(config, settings)
    assert {path.name for path in (tmp_path / "cache").iterdir()} == entries
    prints = first.prints(), second.prints()
    assert prints[0]["documents"] == prints[1]["documents"] and prints[0]["mixture"] != prints[1]["mixture"]
    assert prints[0]["tokenizer"] == prints[1]["tokenizer"]
    of_one = open_corpus(
        dataclasses.replace(config, source=config.sources["loud"].source, sources=None), 0, settings, CausalLM()
    )
    assert "mixture" not in of_one.prints() and of_one.mixture is None


def test_a_tokenizer_is_trained_on_all_sources_in_turn(mixed: Make, settings: TrainerConfig) -> None:
    assert list(in_turn([iter("abc"), iter("x"), iter("12")])) == ["a", "x", "1", "b", "2", "c"]
    few = mixed(tokenizer=TokenizerConfig(vocab_size=300, sample_documents=8))
    tokens = opened(few, settings).tokenizer.get_vocab()
    learnt = [token for token in tokens if len(token.strip("Ġ")) > 1 and token.isalpha()]
    assert any(token.strip("Ġ").isupper() for token in learnt) and any(token.strip("Ġ").islower() for token in learnt)


@pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streamed"])
def test_the_held_out_set_weighs_sources_by_their_shares(mixed: Make, settings: TrainerConfig, streaming: bool) -> None:
    corpus = opened(mixed(streaming=streaming, held_out=0.3), settings)
    assert corpus.eval_sets == ["held_out"] and corpus.has_held_out
    limit = 8
    batches = {name: list(corpus.source_batches(name, limit)) for name in corpus.names}
    counts = {name: sum(int((m.samples >= 0).sum()) for m in each) for name, each in batches.items()}
    assert counts == {"loud": 2, "plain": 6} and corpus.factors(limit) == {"loud": 1.0, "plain": 1.0}
    for name, each in batches.items():
        for micro in each:
            for ids, place in zip(micro.inputs["input_ids"].tolist(), micro.samples.tolist(), strict=True):
                assert place < 0 or loud(corpus, ids) == (name == "loud")
    together = [int(place) for micro in corpus.eval_batches(limit) for place in micro.samples if place >= 0]
    assert together == sorted(set(together)) and len(together) == 8
    assert [corpus.shown(place)["data_source"] for place in (together[0], together[-1])] == ["loud", "plain"]
    if not streaming:
        sizes = {name: len(part.held_out) for name, part in zip(corpus.names, corpus.parts, strict=True)}
        factors = corpus.factors(None)
        weighed = {name: sizes[name] * factors[name] for name in sizes}
        assert weighed["plain"] / weighed["loud"] == pytest.approx(3) and min(factors.values()) == 1


def test_a_mixture_may_have_separate_evaluation_sets(
    mixed: Make, settings: TrainerConfig, tmp_path: Path, documents: list[str]
) -> None:
    other = {"_target_": FILES, "paths": [jsonl(tmp_path / "other.jsonl", [{"text": t} for t in documents[100:130]])]}
    corpus = opened(mixed(eval_source=other, eval_sets={"more": other}), settings)
    assert corpus.eval_sets == ["held_out", "more"] and corpus.factors(None) == {}
    held_out, more = (list(corpus.eval_batches(None, name=name)) for name in ("held_out", "more"))
    assert [micro.inputs["input_ids"].tolist() for micro in held_out] == [m.inputs["input_ids"].tolist() for m in more]
    streamed = opened(mixed(eval_source=other, streaming=True), settings)
    assert streamed.factors(5) == {} and len(list(streamed.eval_batches(5))) == 3


def test_nothing_held_out(mixed: Make, settings: TrainerConfig) -> None:
    corpus = opened(mixed(held_out=0.0), settings)
    assert not corpus.has_held_out and corpus.eval_sets == [] and corpus.factors(None) == {}


def labelled(tmp_path: Path, **columns: Mapping[str, Any]) -> dict[str, MixedSource]:
    """Sources of labelled texts by name, each in its own file; functions give the value of each column in row n."""
    made = {}
    for name, values in columns.items():
        of = [{column: value(n) for column, value in values.items()} for n in range(24)]
        made[name] = MixedSource({"_target_": ROWS, "paths": [jsonl(tmp_path / f"{name}.jsonl", of)]})
    return made


def rows_corpus(config: DataConfig, settings: TrainerConfig) -> Any:
    return open_corpus(config, 0, settings, SequenceClassification(), model=SimpleNamespace())


def test_rows_of_several_sources(data_config: Make, settings: TrainerConfig, tmp_path: Path) -> None:
    sources = labelled(
        tmp_path,
        reviews={"body": lambda n: f"a review {n}", "stars": lambda n: ["good", "bad"][n % 2]},
        posts={"text": lambda n: f"a post {n}", "label": lambda n: ["bad", "odd"][n % 2]},
    )
    sources["reviews"].columns, sources["posts"].weight = {"text": "body", "label": "stars"}, 2
    options = {"source": None, "held_out": 0.25, "tokenizer": TokenizerConfig(vocab_size=300)}
    corpus = rows_corpus(data_config(sources=sources, **options), settings)
    assert corpus.facts.labels == ("bad", "good", "odd"), "labels are those of all sources"
    found = []
    for batch in corpus.train_batches({}, 0, 15):
        for micro in batch.micro_batches:
            kinds = [corpus.names[number] for number in corpus.sources_of(micro.samples.tolist())]
            found += kinds
            for kind, ids in zip(kinds, micro.inputs["input_ids"].tolist(), strict=True):
                assert ("post" in corpus.tokenizer.decode(ids)) == (kind == "posts")
    assert Counter(found) == {"posts": 80, "reviews": 40}
    assert corpus.shown(0)["data_source"] == "posts" and "text" in corpus.shown(0)


def test_labels_that_sources_number_differently_are_taken_by_name(tmp_path: Path) -> None:
    def rows(names: list[str], values: list[Any], feature: Any) -> PreparedRows:
        data = Dataset.from_dict({"text": names, "label": values}).cast_column("label", feature)
        return PreparedRows(data, data.select([0]), Stats(), "print")

    one = rows(["a", "b"], [0, 1], ClassLabel(names=["cat", "dog"]))
    two = rows(["c", "d"], [1, 0], ClassLabel(names=["dog", "owl"]))
    three = rows(["e"], ["cat"], Value("string"))
    named = with_named_labels({"one": one, "two": two, "three": three})
    joined = joined_rows(named)
    assert dict(zip(joined["text"], joined["label"], strict=True)) == dict(a="cat", b="dog", c="owl", d="dog", e="cat")
    assert named["two"].held_out["label"] == ["owl"] and named["three"] == three
    alike = {"one": one, "again": one}
    assert with_named_labels(alike) == alike, "labels that are numbered alike stay numbers"


def test_sources_that_do_not_fit_are_refused(data_config: Make, settings: TrainerConfig, tmp_path: Path) -> None:
    text, label = {"text": lambda n: f"text {n}"}, {"label": lambda n: "ab"[n % 2]}
    cases = {
        "gives the columns label, text, and the source one gives label, text, text_pair": (
            {**text, **label, "text_pair": lambda n: "pair"},
            {**text, **label},
        ),
        "holds label as int64, and the source one holds it as string": (
            {**text, **label},
            {**text, "label": lambda n: n % 2},
        ),
        "gives no column label": ({**text, **label}, text),
    }
    for place, (words, (one, two)) in enumerate(cases.items()):
        (folder := tmp_path / str(place)).mkdir()
        config = data_config(source=None, sources=labelled(folder, one=one, two=two), held_out=0.25)
        with pytest.raises(UserError) as caught:
            rows_corpus(config, settings)
        assert len(caught.value.problems) == 1 and "data.sources.two.source" in str(caught.value)
        assert words in str(caught.value)


@pytest.mark.parametrize("streaming", [False, True], ids=["prepared", "streamed"])
def test_a_fault_names_its_source(mixed: Make, settings: TrainerConfig, tmp_path: Path, streaming: bool) -> None:
    def refused(entry: dict[str, Any], **options: Any) -> str:
        config = mixed(streaming=streaming, **options)
        sources = {**config.sources, "third": MixedSource(entry)}
        with pytest.raises(UserError) as caught:
            corpus = open_corpus(dataclasses.replace(config, sources=sources), 0, settings, CausalLM())
            next(corpus.train_batches({}, 0, 1))
        assert all("third" in str(problem) for problem in caught.value.problems), caught.value
        return str(caught.value)

    empty = jsonl(tmp_path / "empty.jsonl", [{"text": ""}] * 3)
    short = jsonl(tmp_path / "short.jsonl", [{"text": f"{n} words"} for n in range(3)])
    body = jsonl(tmp_path / "body.jsonl", [{"body": f"{n} words"} for n in range(9)])
    assert "data.sources.third.source.paths" in refused({"_target_": FILES, "paths": [str(tmp_path / "no.txt")]})
    assert "data.sources.third.source.text_column" in refused({"_target_": FILES, "paths": [body]})
    rows = refused({"_target_": ROWS, "paths": [body]})
    assert "data.sources.third.source" in rows and "rows of columns, and this task learns from documents" in rows
    for path in (empty, short):
        assert "third" in refused({"_target_": FILES, "paths": [path]}, block_size=128), path


def test_streams_go_on_from_where_they_were_with_other_weights_and_sources(
    mixed: Make, settings: TrainerConfig, tmp_path: Path, documents: list[str]
) -> None:
    config = mixed(streaming=True, block_size=128)
    batches = opened(config, settings).train_batches({}, 0, 6)
    seen = blocks(batches)
    new = {"_target_": FILES, "paths": [jsonl(tmp_path / "new.jsonl", [{"text": text} for text in documents[90:130]])]}
    sources = {name: dataclasses.replace(entry, weight=1) for name, entry in config.sources.items()}
    path = str(tmp_path / "tokenizer")
    opened(config, settings).tokenizer.save_pretrained(path)
    other = dataclasses.replace(
        config, sources={**sources, "new": MixedSource(new)}, tokenizer=TokenizerConfig(path=path)
    )
    after = opened(other, settings)
    more = after.train_batches(batches.state(), 6 * GLOBAL, 3)
    found = blocks(more)
    assert not set(found) & set(seen), "the first pass of every source goes on"
    assert more.state()["sources"].keys() == {"loud", "plain", "new"}
    one = dataclasses.replace(other, source=new, sources=None)
    again = open_corpus(one, 0, settings, CausalLM()).train_batches(batches.state(), GLOBAL, 1)
    assert len(blocks(again)) == GLOBAL  # read from its beginning
