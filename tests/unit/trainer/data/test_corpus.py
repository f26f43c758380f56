"""Tests of preparing texts for training: exact tokens, statistics, training and evaluation batches, caching, several
processes and bad input.
"""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from trireme.errors import UserError
from trireme.trainer.data import prepare as preparation
from trireme.trainer.data.collator import IGNORE
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.held_out import split_documents, text_hash
from trireme.trainer.data.open_corpus import open_corpus
from trireme.trainer.data.token_corpus import IndexedCorpus
from trireme.trainer.data.tokenizer import TokenizerConfig
from trireme.trainer.settings import TrainerConfig
from trireme.trainer.tasks.causal_lm import CausalLM

FILES = "trireme.trainer.data.sources.Files"
Make = Callable[..., DataConfig]


def jsonl(path: Path, texts: list[str]) -> dict:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return {"_target_": FILES, "paths": [str(path)]}


def indexed(config: DataConfig, settings: TrainerConfig, seed: int = 0) -> IndexedCorpus:
    corpus = open_corpus(config, seed, settings, CausalLM())
    assert isinstance(corpus, IndexedCorpus)
    return corpus


def flat(samples) -> list[int]:
    return [token for i in range(len(samples)) for token in samples[i]["input_ids"].tolist()]


def message(config: DataConfig, settings: TrainerConfig) -> str:
    with pytest.raises(UserError) as caught:
        open_corpus(config, 0, settings, CausalLM())
    return str(caught.value)


def test_packing_loses_no_token(data_config: Make, settings: TrainerConfig, documents: list[str]) -> None:
    corpus = indexed(data_config(), settings)
    rows = split_documents(np.array([text_hash(text) for text in documents], np.uint64), 0.1)
    for samples, chosen, tokens in zip(
        (corpus.train, corpus.held_out), rows, (corpus.stats.train_tokens, corpus.stats.held_out_tokens), strict=True
    ):
        expected = []
        for row in chosen:
            expected += [*corpus.tokenizer(documents[row])["input_ids"], corpus.tokenizer.eos_token_id]
        got = flat(samples)
        assert len(expected) == tokens
        assert got == expected[: len(got)] and len(expected) - len(got) < 32


def test_statistics(data_config: Make, settings: TrainerConfig, documents: list[str]) -> None:
    corpus = indexed(data_config(), settings)
    stats = corpus.stats
    assert stats.documents == len(documents) and stats.duplicates_dropped == 0 and stats.undecodable_skipped == 0
    assert stats.train_blocks == corpus.train_size == len(corpus.train)
    tokens = Counter(np.concatenate(corpus.held_out.tokens.parts).tolist())
    total = sum(tokens.values())
    assert stats.unigram_entropy == pytest.approx(-sum(n / total * math.log(n / total) for n in tokens.values()))
    text = corpus.tokenizer.decode(np.concatenate(corpus.held_out.tokens.parts), skip_special_tokens=True)
    assert stats.bytes_per_token == pytest.approx(len(text.encode()) / total)


def test_documents_as_samples(data_config: Make, settings: TrainerConfig, documents: list[str]) -> None:
    packed, single = (indexed(data_config(packing=packing), settings) for packing in (True, False))
    assert single.train_size == single.stats.train_documents
    lengths = [len(single.train[i]["input_ids"]) for i in range(len(single.train))]
    assert max(lengths) == 32 and min(lengths) < 32
    assert single.train[0]["input_ids"].tolist() == packed.train[0]["input_ids"].tolist()
    padded = [
        {"attention_mask" in micro.inputs for micro in batch.micro_batches} for batch in single.train_batches({}, 0, 20)
    ]
    assert {True} in padded and {True, False} not in padded  # all micro-batches of a step are alike
    assert len(list(Path(single.config.cache_dir or "").glob("*.lock"))) == 1  # both cut the same prepared tokens


def test_duplicates_and_empty_documents(
    tmp_path: Path, data_config: Make, settings: TrainerConfig, documents: list[str]
) -> None:
    source = jsonl(tmp_path / "twice.jsonl", [*documents, "", *documents[:30], ""])
    once, twice = indexed(data_config(), settings), indexed(data_config(source=source), settings)
    assert twice.stats.duplicates_dropped == 30 and twice.stats.documents == len(documents)
    assert flat(twice.train) == flat(once.train)
    kept = indexed(data_config(source=source, deduplicate=False), settings)
    assert kept.stats.duplicates_dropped == 0 and kept.stats.documents == len(documents) + 30


def test_an_evaluation_source_is_kept_out_of_training(
    tmp_path: Path, data_config: Make, settings: TrainerConfig, documents: list[str]
) -> None:
    other = jsonl(tmp_path / "eval.jsonl", [*documents[:10], "something else " * 30])
    corpus = indexed(data_config(eval_source=other), settings)
    assert (corpus.stats.train_documents, corpus.stats.held_out_documents) == (len(documents) - 10, 11)
    assert corpus.stats.duplicates_dropped == 10
    text = corpus.tokenizer.decode(flat(corpus.held_out))
    assert text.startswith(documents[0][:100])


def test_nothing_held_out(data_config: Make, settings: TrainerConfig) -> None:
    corpus = indexed(data_config(held_out=0.0), settings)
    assert not corpus.has_held_out and corpus.stats.unigram_entropy is None
    assert list(corpus.eval_batches(None)) == []


def test_more_processes_tokenize_the_same(tmp_path: Path, data_config: Make, settings: TrainerConfig) -> None:
    one = indexed(data_config(), settings)
    two = indexed(data_config(num_proc=2, cache_dir=str(tmp_path / "two")), settings)
    assert flat(one.train) == flat(two.train) and flat(one.held_out) == flat(two.held_out)


def test_shares_joined_equal_one_rank_and_resume(data_config: Make, settings: TrainerConfig) -> None:
    corpus = indexed(data_config(), settings, seed=5)
    whole = list(corpus.train_batches({}, 0, 6))
    shares = zip(*(corpus.train_batches({}, 0, 6, rank, 2) for rank in range(2)), strict=True)
    for parts, batch in zip(shares, whole, strict=True):
        joined = torch.cat([micro.inputs["input_ids"] for part in parts for micro in part.micro_batches])
        assert torch.equal(joined, torch.cat([micro.inputs["input_ids"] for micro in batch.micro_batches]))
        assert sum(part.labels for part in parts) == batch.labels == 8 * 31
    interrupted = corpus.train_batches({}, 0, 6)
    next(interrupted)
    resumed = list(indexed(data_config(), settings, seed=5).train_batches(interrupted.state(), 8, 5))
    assert [batch.samples for batch in resumed] == [batch.samples for batch in whole[1:]]
    other = indexed(data_config(), settings, seed=6).train_batches({}, 0, 6)
    assert [batch.samples for batch in other] != [batch.samples for batch in whole]


def test_evaluation_batches(data_config: Make, settings: TrainerConfig) -> None:
    corpus = indexed(data_config(), settings)
    ranks = [list(corpus.eval_batches(7, rank, 2)) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [2, 2]
    real = [row for rank in ranks for micro in rank for row in (micro.targets["labels"] != IGNORE).any(1).tolist()]
    assert sum(real) == 7
    places = [place for rank in ranks for micro in rank for place in micro.samples.tolist()]
    assert [place >= 0 for place in places] == real and sorted(places) == [-1, *range(7)]


def test_the_second_preparation_loads_the_cache(
    data_config: Make, settings: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = indexed(data_config(), settings)
    monkeypatch.setattr(preparation, "_prepare", None)  # preparing again would fail
    start = time.perf_counter()
    second = indexed(data_config(), settings)
    assert time.perf_counter() - start < 1
    assert flat(first.train) == flat(second.train)
    indexed(data_config(block_size=64, packing=False, shuffle=False), settings)  # cut from the same tokens
    for change in (
        {"held_out": 0.2},
        {"append_eos": False},
        {"prepend_bos": True},
        {"deduplicate": False},
        {"tokenizer": TokenizerConfig(vocab_size=401)},
    ):
        with pytest.raises(TypeError):
            open_corpus(data_config(**change), 0, settings, CausalLM())


def test_changed_files_are_prepared_anew(tmp_path: Path, data_config: Make, settings: TrainerConfig) -> None:
    indexed(data_config(), settings)
    with (tmp_path / "documents.jsonl").open("a") as file:
        file.write(json.dumps({"text": "a new document " * 20}) + "\n")
    lines = (tmp_path / "documents.jsonl").read_text().splitlines()
    assert indexed(data_config(), settings).stats.documents == len(lines)


def _prepare_in_process(config: DataConfig, queue, together) -> None:
    work = preparation._prepare

    def counted(*arguments) -> None:
        queue.put("prepared")
        time.sleep(0.3)  # meanwhile the other process, which began at the same time, arrives
        work(*arguments)

    preparation._prepare = counted
    together.wait(timeout=120)  # imports take seconds, in one process more than in the other
    corpus = indexed(config, TrainerConfig(max_steps=1, global_batch_size=2, micro_batch_size=2))
    queue.put(next(corpus.train_batches({}, 0, 1)).micro_batches[0].inputs["input_ids"].tolist())


def test_two_processes_prepare_once(data_config: Make) -> None:
    context = multiprocessing.get_context("spawn")
    queue, together = context.Queue(), context.Barrier(2)
    arguments = (data_config(), queue, together)
    processes = [context.Process(target=_prepare_in_process, args=arguments, daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    results = [queue.get(timeout=120) for _ in range(3)]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    batches = [result for result in results if result != "prepared"]
    assert len(batches) == 2 and batches[0] == batches[1]


def test_an_interrupted_preparation_leaves_nothing(
    data_config: Make, settings: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(preparation, "write_tokens", killed)
        with pytest.raises(KeyboardInterrupt):
            open_corpus(data_config(), 0, settings, CausalLM())
    cache = Path(data_config().cache_dir or "")
    assert {path.name for path in cache.iterdir() if path.is_dir()} == {"tokenizers"}
    assert indexed(data_config(), settings).train_size


def test_remains_of_a_killed_process_are_removed(data_config: Make, settings: TrainerConfig) -> None:
    folder = preparation.prepared_folder(data_config())[0]
    shutil.rmtree(folder)
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir()
    (partial / "train.arrow").write_text("half")
    assert indexed(data_config(), settings).train_size and not partial.exists()


def test_a_full_disk_is_a_message(data_config: Make, settings: TrainerConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """``/dev/full`` stands for a full disk."""
    if not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(preparation, "write_column", lambda *_: Path("/dev/full").write_bytes(b"x" * 100_000))
    assert "no space is left" in message(data_config(), settings)
    assert not list(Path(data_config().cache_dir or "").glob("*.partial"))


def test_the_cache_folder_must_be_writable(tmp_path: Path, data_config: Make, settings: TrainerConfig) -> None:
    (tmp_path / "file").write_text("")
    text = message(data_config(cache_dir=str(tmp_path / "file" / "cache")), settings)
    assert "data.cache_dir" in text and "TRIREME_CACHE" in text


def test_the_cache_folder_follows_the_environment(
    tmp_path: Path, data_config: Make, settings: TrainerConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRIREME_CACHE", str(tmp_path / "elsewhere"))
    indexed(data_config(cache_dir=None), settings)
    assert list((tmp_path / "elsewhere").glob("*/train.arrow"))


def test_an_empty_data_set(tmp_path: Path, data_config: Make, settings: TrainerConfig) -> None:
    (tmp_path / "none.jsonl").write_text("")
    assert "gives no documents" in message(data_config(source=jsonl(tmp_path / "none.jsonl", [])), settings)
    text = message(data_config(source=jsonl(tmp_path / "blank.jsonl", ["", ""])), settings)
    assert "data.source" in text and "2 found, all of them empty" in text


def test_one_document_cannot_be_split(tmp_path: Path, data_config: Make, settings: TrainerConfig) -> None:
    text = message(data_config(source=jsonl(tmp_path / "one.jsonl", ["word " * 500])), settings)
    assert "data.held_out = 0.1" in text and "the only document falls into the train split" in text
    assert "split_text=paragraph" in text


def test_training_text_may_not_vanish_into_the_evaluation(data_config: Make, settings: TrainerConfig) -> None:
    assert "data.eval_source" in message(data_config(eval_source=data_config().source), settings)


def test_text_shorter_than_a_block(tmp_path: Path, data_config: Make, settings: TrainerConfig) -> None:
    source = jsonl(tmp_path / "short.jsonl", ["one two three four", "five six seven eight"])
    text = message(data_config(source=source, held_out=0.5, block_size=4096), settings)
    assert text.count("data.block_size = 4096") == 2 and "raise data.held_out" in text
    corpus_tokens = int(text.split("train split has only ")[1].split()[0])
    fits = int(text.split("set data.block_size=")[1].split()[0])
    assert fits <= corpus_tokens < 2 * fits
    indexed(data_config(source=source, held_out=0.5, block_size=2), settings)


def test_a_tokenizer_without_an_end(tmp_path: Path, data_config: Make, settings: TrainerConfig) -> None:
    tokenizer = indexed(data_config(), settings).tokenizer
    tokenizer.eos_token = tokenizer.bos_token = None
    tokenizer.save_pretrained(tmp_path / "mine")
    config = data_config(tokenizer=TokenizerConfig(path=str(tmp_path / "mine")))
    assert "data.append_eos" in message(config, settings)
    assert indexed(dataclasses.replace(config, append_eos=False), settings).train_size
    assert "data.prepend_bos" in message(dataclasses.replace(config, append_eos=False, prepend_bos=True), settings)


def test_weights_bring_their_tokenizer(tmp_path: Path, data_config: Make, settings: TrainerConfig) -> None:
    trained = indexed(data_config(tokenizer=TokenizerConfig(vocab_size=300)), settings).tokenizer
    trained.save_pretrained(tmp_path / "weights")
    corpus = open_corpus(data_config(), 0, settings, CausalLM(), tokenizer_folder=str(tmp_path / "weights"))
    assert len(corpus.tokenizer) == 300
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match=r"data\.tokenizer\.path"):
        open_corpus(data_config(), 0, settings, CausalLM(), tokenizer_folder=str(tmp_path / "bare"))


def test_the_recipe_chooses_the_collator(data_config: Make, settings: TrainerConfig) -> None:
    component = {"_target_": "trireme.trainer.data.collator.CausalLMCollator", "pad_to_multiple_of": 1}
    corpus = open_corpus(data_config(), 0, settings, CausalLM(), component)
    assert (corpus.collator.pad_to_multiple_of, corpus.collator.micro_batch_size) == (1, 2)  # type: ignore[attr-defined]
