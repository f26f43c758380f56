"""Tests of training and loading tokenizers: exact decoding, special tokens, long words, caching, and equal results in
every process.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Timer

import pytest
from trireme.errors import UserError
from trireme.trainer.data.tokenizer import (
    LONGEST_WORD,
    TokenizerConfig,
    WordCutter,
    content_hash,
    encode_documents,
    load_or_train,
    train_tokenizer,
)


@pytest.fixture
def tokenizer(tmp_path: Path, documents: list[str]):
    return load_or_train(TokenizerConfig(vocab_size=500), lambda: documents, "fingerprint", str(tmp_path))


def test_any_text_is_decoded_exactly(tokenizer) -> None:
    generator = random.Random(0)
    noise = "".join(
        chr(generator.choice([generator.randrange(0xD800), generator.randrange(0xE000, 0x110000)])) for _ in range(2000)
    )
    texts = [
        noise,
        " leading",
        "trailing \n\n",
        "\x00\r\n\t",
        "e\u0301 é ﬁ 🧀‍",
        "a <|endoftext|> b<|pad|>",
        "it 's , ok .",
    ]
    for text, ids in zip(texts, encode_documents(tokenizer, texts, append_eos=False), strict=True):
        assert tokenizer.decode(ids) == text
        assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(ids)  # text cannot forge special tokens


def test_documents_end_with_eos(tokenizer) -> None:
    plain, ended = (encode_documents(tokenizer, ["def f(): pass", "x"], eos) for eos in (False, True))
    assert ended == [[*ids, tokenizer.eos_token_id] for ids in plain]
    begun = encode_documents(tokenizer, ["def f(): pass", "x"], True, True)
    assert begun == [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in plain]
    assert (tokenizer.eos_token, tokenizer.bos_token, tokenizer.pad_token) == ("<|endoftext|>",) * 2 + ("<|pad|>",)
    assert len(tokenizer) == 500
    assert encode_documents(tokenizer, [], True) == []


def test_it_is_trained_once_per_fingerprint(tmp_path: Path, tokenizer, documents: list[str]) -> None:
    def never() -> list[str]:
        raise AssertionError("trained again")

    again = load_or_train(TokenizerConfig(vocab_size=500), never, "fingerprint", str(tmp_path))
    assert content_hash(again) == content_hash(tokenizer)
    for size, fingerprint in ((501, "fingerprint"), (500, "new")):
        with pytest.raises(AssertionError, match="trained again"):
            load_or_train(TokenizerConfig(vocab_size=size), never, fingerprint, str(tmp_path))
    assert not list((tmp_path / "tokenizers").glob("*.partial"))
    smaller = load_or_train(TokenizerConfig(vocab_size=300), lambda: documents, "fingerprint", str(tmp_path))
    assert len(smaller) == 300 and content_hash(smaller) != content_hash(tokenizer)


def test_sample_documents_limits_the_training(tmp_path: Path) -> None:
    """The words of the second document would need tokens of their own."""
    texts = ["aaaa bbbb " * 50, "a completely different sentence " * 50]
    one, two = (
        load_or_train(TokenizerConfig(sample_documents=count), lambda: texts, f"{count}", str(tmp_path))
        for count in (1, 2)
    )
    assert 258 < len(one) < len(two)


def test_a_local_folder_is_taken_as_it_is(tmp_path: Path, tokenizer) -> None:
    tokenizer.save_pretrained(tmp_path / "mine")
    loaded = load_or_train(TokenizerConfig(path=str(tmp_path / "mine")), list, "", str(tmp_path / "cache"))
    assert content_hash(loaded) == content_hash(tokenizer)
    assert loaded.split_special_tokens and not (tmp_path / "cache").exists()


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vocab_size=257"):
        TokenizerConfig(vocab_size=257)
    with pytest.raises(ValueError, match="sample_documents=0"):
        TokenizerConfig(sample_documents=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"data\.tokenizer\.path"):
        load_or_train(TokenizerConfig(path=str(tmp_path / "empty")), list, "", str(tmp_path))


def test_a_disk_that_is_full_while_saving_is_a_message(
    tmp_path: Path, documents: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The device that is always full stands for the disk; `tokenizers` reports it with an exception of its own."""
    from transformers import PreTrainedTokenizerFast

    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    monkeypatch.setattr(
        PreTrainedTokenizerFast, "save_pretrained", lambda self, folder: self.backend_tokenizer.save("/dev/full")
    )
    with pytest.raises(UserError, match="no space is left"):
        load_or_train(TokenizerConfig(vocab_size=400), lambda: documents, "full", str(tmp_path))
    assert [path.suffix for path in (tmp_path / "tokenizers").iterdir()] == [".lock"]


@pytest.mark.parametrize("unit", ["ACGT", "12", "=-", " ", "\u4e2d"])
def test_long_words_are_cut_for_training_and_reported(unit: str, caplog: pytest.LogCaptureFixture) -> None:
    """Uncut, training takes minutes for the first of these (DNA)."""
    blob = (unit * 400_000)[:400_000]
    with caplog.at_level("WARNING", "trireme.data"):
        start = time.monotonic()
        tokenizer = train_tokenizer(TokenizerConfig(vocab_size=400), lambda: ["some words", f"a {blob} b"])
        assert time.monotonic() - start < 30
    assert "1 word(s) of more than 1000 characters (the longest has 40000" in caplog.text
    assert tokenizer.decode(tokenizer(f"a{blob[:3000]}")["input_ids"]) == f"a{blob[:3000]}"


def test_text_without_long_words_is_not_touched() -> None:
    texts = ["word " * 3000, "x" * LONGEST_WORD, "", "中文。" * 900]
    cutter = WordCutter()
    assert ["".join(cutter([text])) for text in texts] == texts
    assert (list(cutter(texts)), cutter.words) == (texts, 0)


def test_ctrl_c_is_heard_while_a_tokenizer_trains() -> None:
    """The training would take long, and the library `tokenizers` itself listens to no signal."""
    texts = ("".join(random.choices("abcdefgh", k=900)) for _ in range(4000))
    timer = Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    # A shell starts what it runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        timer.start()
        start = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            train_tokenizer(TokenizerConfig(vocab_size=50_000), lambda: texts)
        assert time.monotonic() - start < 10
    finally:
        signal.signal(signal.SIGINT, before)


def test_words_are_numbered_by_frequency_and_lines_keep_their_indentation() -> None:
    texts = ["def f(a):\n    return a\n" * 3, "a b"]
    tokenizer = train_tokenizer(TokenizerConfig(kind="words", vocab_size=12), lambda: texts)
    words = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert words[:4] == ["<pad>", "<eos>", "<unk>", "a"] and len(words) == 12
    found = tokenizer("def f(a): b\n    unheard")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(found)[:6] == ["def", "f", "(", "a", ")", ":"]
    assert "\n    " in tokenizer.convert_ids_to_tokens(found) and found[-1] == tokenizer.unk_token_id
    assert tokenizer.eos_token_id == 1 and tokenizer.pad_token_id == 0


KINDS = ("bpe", "wordpiece", "unigram", "words", "characters")
TRAIN = """
import json, sys
from pathlib import Path
from trireme.trainer.data.tokenizer import TokenizerConfig, train_tokenizer
texts = [file.read_text() for file in sorted((Path(json.__file__).parent.parent / "asyncio").glob("*.py"))]
for kind in sys.argv[1:]:
    tokenizer = train_tokenizer(TokenizerConfig(kind=kind, vocab_size=900), lambda: texts)
    print(kind, tokenizer.backend_tokenizer.to_str())
"""


def test_every_process_trains_the_same_tokenizer() -> None:
    """The library follows tables whose order differs from process to process, and sums of threads."""
    command = [sys.executable, "-c", TRAIN, *KINDS]
    first, second = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert [line.split()[0] for line in first.splitlines()] == list(KINDS) and first == second


def test_pieces_inside_of_words_are_no_special_tokens() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(kind="wordpiece", vocab_size=120), lambda: ["rowing rowers row"] * 9)
    added = {token.content for token in tokenizer.backend_tokenizer.get_added_tokens_decoder().values()}
    assert added == {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    assert tokenizer.tokenize("rowing row##s") == ["rowing", "row", "[UNK]", "[UNK]", "s"]
    assert tokenizer.decode(tokenizer("rowing")["input_ids"], skip_special_tokens=True) == "rowing"
