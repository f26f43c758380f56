"""Tests of data for sequence-to-sequence models: translation catalogues, samples, and decoder inputs."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.catalogues import write_catalogue
from trireme.errors import UserError
from trireme.models.facts import Facts
from trireme.models.loss import IGNORE
from trireme.models.vocabulary import Vocabulary
from trireme.trainer.component import Component
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.further_sets import further_rows, prefix_of
from trireme.trainer.data.gettext_rows import GettextCatalogues, catalogue
from trireme.trainer.data.open_corpus import open_corpus
from trireme.trainer.data.open_samples import open_samples
from trireme.trainer.data.seq2seq_collator import Seq2SeqCollator
from trireme.trainer.data.text_rows import ended
from trireme.trainer.data.tokenizer import TokenizerConfig, load_or_train
from trireme.trainer.settings import TrainerConfig
from trireme.trainer.tasks.seq2seq_lm import Seq2SeqLM

PAIRS = [{"source": f"word {n} of {n % 7}", "target": f"mot {n} de {n % 7}"} for n in range(60)]
MESSAGES = {"": "Content-Type: text/plain; charset=UTF-8\n", "yes": "oui", "a\x04no": "non", "day\0days": "jour\0jours"}


def _catalogue(path: Path, order: str) -> Path:
    return write_catalogue(path, MESSAGES, order)


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_catalogue_gives_messages_without_contexts_and_plurals(tmp_path: Path, order: str) -> None:
    file = _catalogue(tmp_path / "fr" / "LC_MESSAGES" / "x.mo", order)
    assert list(catalogue(file)) == [("yes", "oui"), ("no", "non"), ("day", "jour")]
    source = GettextCatalogues("fr", [str(tmp_path)], longest=3)
    assert source.rows("") == [{"source": "yes", "target": "oui"}, {"source": "no", "target": "non"}]
    assert source.fingerprint() != GettextCatalogues("fr", [str(tmp_path)]).fingerprint()


def test_the_catalogues_of_msgfmt(tmp_path: Path) -> None:
    text = "".join(
        f'msgid "{key}"\nmsgstr "{value}"\n\n' for key, value in (("yes", "oui"), ("one more", "un de plus"))
    )
    (tmp_path / "x.po").write_text(text)
    try:
        subprocess.run(["msgfmt", "-o", tmp_path / "x.mo", tmp_path / "x.po"], check=True)
    except FileNotFoundError:
        pytest.skip("msgfmt is not installed")
    assert sorted(catalogue(tmp_path / "x.mo")) == [("one more", "un de plus"), ("yes", "oui")]


def test_files_that_are_no_catalogues_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="hold no catalogue"):
        GettextCatalogues("fr", [str(tmp_path)]).look()
    file = _catalogue(tmp_path / "fr" / "LC_MESSAGES" / "x.mo", "<")
    for content in (b"", b"not one", file.read_bytes()[:70]):
        file.write_bytes(content)
        with pytest.raises(UserError, match="is not a gettext catalogue"):
            list(catalogue(file))


def _component(path: Path) -> Component:
    return {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": [str(path)]}


@pytest.fixture
def config(tmp_path: Path) -> DataConfig:
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    (tmp_path / "more.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in [*PAIRS[:9], PAIRS[0]]))
    return DataConfig(
        source=_component(tmp_path / "pairs.jsonl"),
        eval_sets={"more": _component(tmp_path / "more.jsonl")},
        test_source=_component(tmp_path / "more.jsonl"),
        samples={"prefix": "fr: ", "target_length": 4},
        tokenizer=TokenizerConfig(kind="unigram", vocab_size=150),
        block_size=12,
        held_out=0.3,
        cache_dir=str(tmp_path / "cache"),
    )


def test_samples_have_a_prefix_and_an_end(config: DataConfig) -> None:
    settings = TrainerConfig(max_steps=1, global_batch_size=4, micro_batch_size=4)
    model = SimpleNamespace(decoder_start_token_id=None)
    corpus = open_corpus(config, 0, settings, Seq2SeqLM(), model=model)
    sample, tokenizer = corpus.train[0], corpus.tokenizer  # type: ignore[attr-defined]
    assert tokenizer.decode(sample["input_ids"], skip_special_tokens=True).startswith("fr: word")
    assert len(sample["labels"]) <= 4 and sample["labels"][-1] == sample["input_ids"][-1] == tokenizer.eos_token_id
    assert corpus.eval_sets == ["held_out", "more"]
    assert sum(int((micro.samples >= 0).sum()) for micro in corpus.eval_batches(None, name="more")) == 9
    assert next(corpus.eval_batches(5, name="test")).inputs["decoder_input_ids"][0, 0] == tokenizer.pad_token_id
    assert corpus.shown(2, "test") == PAIRS[2]
    with pytest.raises(UserError, match="there is no such set"):
        next(corpus.eval_batches(5, name="unknown"))


def test_further_sets_do_not_change_what_is_trained_on(config: DataConfig) -> None:
    settings = TrainerConfig(max_steps=1, global_batch_size=4, micro_batch_size=4)
    with_them = open_corpus(config, 0, settings, Seq2SeqLM(), model=SimpleNamespace())
    config.eval_sets, config.test_source = {}, None
    without = open_corpus(config, 0, settings, Seq2SeqLM(), model=SimpleNamespace())
    assert with_them.prints() == without.prints()
    with pytest.raises(UserError, match=r"data\.test_source"):
        further_rows(config, "test", {"source": True})
    assert [prefix_of(name) for name in ("held_out", "more", "test")] == ["eval_", "eval_more_", "test_"]


def test_names_of_sets_and_options_are_checked(config: DataConfig) -> None:
    with pytest.raises(UserError, match=r"data\.samples\.prefixx"):
        open_samples(str(Seq2SeqLM.samples), {"prefixx": ""})
    for name in ("test", "train", "held_out", "two words"):
        with pytest.raises((ValueError, UserError), match="eval_sets"):
            DataConfig(source=config.source, eval_sets={name: config.source})


def test_the_decoder_reads_targets_shifted_by_one() -> None:
    model = SimpleNamespace(decoder_start_token_id=None)
    collator = Seq2SeqCollator(9, 2, model, Facts(Vocabulary(50, None, 1, 3)), pad_to_multiple_of=4)
    samples = [
        {"input_ids": np.array([5, 6, 1]), "labels": np.array([7, 8, 9, 10, 1]), "index": 0},
        {"input_ids": np.array([5, 1]), "labels": np.array([7, 1]), "index": 1},
    ]
    micro = collator.micro_batch(samples)
    assert micro.inputs["input_ids"].tolist() == [[5, 6, 1, 9], [5, 1, 9, 9]]
    assert micro.inputs["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert micro.inputs["decoder_input_ids"].tolist() == [[3, 7, 8, 9, 10, 9, 9, 9], [3, 7, 9, 9, 9, 9, 9, 9]]
    assert micro.targets["labels"].tolist()[1] == [7, 1, *[IGNORE] * 6] and micro.length == 12
    model.decoder_start_token_id = 2
    assert collator.micro_batch(samples).inputs["decoder_input_ids"][0, 0] == 2


@pytest.mark.parametrize("kind", ["bpe", "wordpiece", "unigram"])
def test_every_text_to_be_written_ends(tmp_path: Path, kind: str) -> None:
    config = TokenizerConfig(kind=kind, vocab_size=300)
    tokenizer = load_or_train(config, lambda: iter(["see the sea"] * 9), kind, str(tmp_path))
    for length in (3, 64):
        tokens = ended(tokenizer, "the sea, the sea", tokenizer, length)
        assert tokens[-1] == tokenizer.eos_token_id and len(tokens) <= length
        assert (tokens == tokenizer.eos_token_id).sum() == 1


def test_a_tokenizer_without_an_end_writes_no_texts(tmp_path: Path) -> None:
    config = TokenizerConfig(kind="characters", vocab_size=32)
    tokenizer = load_or_train(config, lambda: iter(["see"]), "characters", str(tmp_path))
    with pytest.raises(UserError, match="no token that ends a text"):
        ended(tokenizer, "see", tokenizer, 8)
