"""Load a pretrained tokenizer, or train a new one on the training documents and cache it, and encode documents with it.

By default a byte-level BPE is trained (Radford et al., 2019). It covers every byte, so any text decodes exactly and
there is no unknown token.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Literal

from ...errors import Problem, UserError, refuse
from ...version import __version__
from ..spinner import draws
from .cache import built_once
from .check_tokenizer import FIELD, tokenizer_folder, unloadable
from .content_stamp import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger("trireme.data")
LONGEST_WORD = 1000
"""Most characters of a word in the training of a tokenizer, whose time grows with the cube of this length."""
_TRAINED_ANEW = ("wordpiece", "unigram")
"""Kinds whose training has changed; tokenizers that older versions cached are not used."""
LARGEST_VOCABULARY = 2**24
"""Far more than any tokenizer has; each token takes memory when one is trained."""
SMALLEST_VOCABULARY = 256 + 2
"""Smallest vocabulary: all bytes and the two special tokens."""


@dataclass
class TokenizerConfig:
    """Tokenizer that turns documents into tokens."""

    path: str | None = None
    """Local folder or hub name of a pretrained fast tokenizer; null trains one on the train documents."""
    kind: Literal["bpe", "wordpiece", "unigram", "words", "spaced_words", "characters"] = "bpe"
    """Tokenizer to train: byte-level BPE; WordPiece with BERT's special tokens; Unigram with T5's; whole words,
    numbered by falling frequency, for adaptive softmaxes; the same for texts whose marks stand between spaces too, as
    those of WikiText; or single characters, for speech."""
    vocab_size: int = 4096
    """Tokens of a trained tokenizer, special ones included; a small corpus may give fewer."""
    sample_documents: int | None = None
    """Number of train documents, from the first on, to train the tokenizer on; null takes all of them."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        if self.path is None and self.kind == "bpe" and self.vocab_size < SMALLEST_VOCABULARY:
            yield (
                f"vocab_size={self.vocab_size} is too small for 256 bytes and 2 special tokens; "
                f"set it to at least {SMALLEST_VOCABULARY}"
            )
        if self.path is None and self.vocab_size > LARGEST_VOCABULARY:
            yield (
                f"vocab_size={self.vocab_size} is wrong because it is above {LARGEST_VOCABULARY} tokens; "
                "use a smaller number, such as 32000"
            )
        if self.sample_documents is not None and self.sample_documents < 1:
            yield (
                f"sample_documents={self.sample_documents} is below 1, but a tokenizer is trained on documents; "
                "set it to at least 1, or null for all"
            )


def load_or_train(
    config: TokenizerConfig, texts: Callable[[], Iterable[str]], fingerprint: str, cache_dir: str
) -> PreTrainedTokenizerFast:
    """The tokenizer of ``config``. It is trained once per fingerprint by one process, while others wait.

    Args:
        texts: gives the train documents; only called if a tokenizer must be trained.
        fingerprint: identifies the train documents.
        cache_dir: folder of trained tokenizers (``cache_dir/tokenizers``).

    Raises:
        UserError: there is no such tokenizer, or it is not a fast one.
    """
    if config.path is not None:
        return load_tokenizer(config.path)
    key = json.dumps(["byte-level-bpe", 1, fingerprint, _of_training(config)])
    folder = Path(cache_dir) / "tokenizers" / hashlib.blake2b(key.encode(), digest_size=12).hexdigest()
    with built_once(folder) as scratch:
        if scratch:
            start = time.perf_counter()
            tokenizer = train_tokenizer(config, texts)
            tokenizer.save_pretrained(scratch)
            log.info("trained a tokenizer of %d tokens in %.1f s", len(tokenizer), time.perf_counter() - start)
    return load_tokenizer(str(folder))


def content_hash(tokenizer: PreTrainedTokenizerFast) -> str:
    """A hash that is equal for tokenizers that give equal tokens."""
    content = tokenizer.backend_tokenizer.to_str() + str(tokenizer.eos_token_id)
    return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


def tokens_like(tokenizer: PreTrainedTokenizerFast) -> str:
    """Like ``content_hash``, without settings that saving may change and that do not affect tokens."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    parts = [content.get(name) for name in ("normalizer", "pre_tokenizer", "model", "added_tokens")]
    return hash_json([parts, tokenizer.eos_token_id])


def versions() -> dict[str, str]:
    """Versions of the libraries that turn documents into tokens."""
    from importlib.metadata import version

    return {name: version(name) for name in ("tokenizers", "transformers", "datasets")} | {"trireme": __version__}


def _of_training(config: TokenizerConfig) -> dict[str, object]:
    """Options that a trained tokenizer depends on; the default kind is left out, so that older caches stay valid."""
    options = trained_by(config)
    if config.kind == "bpe":
        options.pop("kind")
    return options


def trained_by(config: TokenizerConfig) -> dict[str, object]:
    """Values that identify the tokenizer that ``config`` trains on given documents."""
    options: dict[str, object] = asdict(config)
    return options | {"form": 2} if config.kind in _TRAINED_ANEW else options


def train_tokenizer(config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> PreTrainedTokenizerFast:
    """Train a tokenizer of ``config.kind``: the same one in every process. Special tokens in documents are treated as
    plain text.

    Args:
        texts: gives the documents; called twice for WordPiece.
    """
    from .tokenizer_kinds import finished, inner_characters, reproducible, untrained

    before: list[str] = []
    if config.kind == "wordpiece":
        tokenizer, trainer, _ = untrained(config.kind, 1, False)  # no room for merges
        _train(tokenizer, trainer, config, texts)
        before = inner_characters(tokenizer)
    tokenizer, trainer, special = untrained(config.kind, config.vocab_size, draws(), before)
    cut = _train(tokenizer, trainer, config, texts)
    if cut.words:
        log.warning(
            "%d word(s) of more than %d characters (the longest has %d) were cut for the training of the tokenizer; "
            "data such as base64 or DNA is rarely useful in a corpus of text",
            cut.words,
            LONGEST_WORD,
            cut.longest,
        )
    tokenizer = reproducible(config.kind, tokenizer, len(trainer.special_tokens) - len(before))
    return finished(config.kind, tokenizer, special)


def _train(tokenizer: Any, trainer: Any, config: TokenizerConfig, texts: Callable[[], Iterable[str]]) -> WordCutter:
    """Give a tokenizer its vocabulary; returns the object that has cut and counted long words."""
    cut = WordCutter()
    batches = _batched(cut(islice(texts(), config.sample_documents)))
    # A thread, since the library ignores Ctrl-C while it trains; a daemon, so that it does not keep the process alive.
    training: Future[None] = Future()
    Thread(
        target=_fulfil, args=(training, partial(tokenizer.train_from_iterator, batches, trainer)), daemon=True
    ).start()
    while True:
        with suppress(TimeoutError):
            training.result(timeout=0.1)
            return cut


class WordCutter:
    """Cuts and counts words that are too long for the training of a tokenizer; other text stays unchanged."""

    def __init__(self) -> None:
        self.words, self.longest = 0, 0

    def __call__(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            yield from self._pieces(text) if len(text) > LONGEST_WORD else (text,)

    def _pieces(self, text: str) -> Iterator[str]:
        import regex

        # A word of byte-level BPE is a run of letters, of digits, of other marks, or of white space.
        classes = (r"\p{L}", r"\p{N}", r"[^\s\p{L}\p{N}]", r"\s")
        runs = "|".join(f"{characters}{{{LONGEST_WORD + 1},}}+" for characters in classes)
        end = 0
        for run in regex.finditer(runs, text):
            self.words, self.longest = self.words + 1, max(self.longest, len(run[0]))
            yield text[end : run.start()]
            yield from (run[0][start : start + LONGEST_WORD] for start in range(0, len(run[0]), LONGEST_WORD))
            end = run.end()
        yield text[end:]


def _fulfil(future: Future[None], function: Callable[[], None]) -> None:
    try:
        future.set_result(function())
    except BaseException as error:  # passed to the waiting thread
        future.set_exception(error)


def _batched(texts: Iterable[str], size: int = 256) -> Iterator[list[str]]:
    texts = iter(texts)
    while batch := list(islice(texts, size)):
        yield batch


def load_tokenizer(path: str, field: str = FIELD) -> PreTrainedTokenizerFast:
    """A pretrained fast tokenizer from a local folder, or from the hub if there is no such folder.

    Args:
        field: the recipe key that names the tokenizer.

    Raises:
        UserError: there is no such tokenizer, it needs a package that is not installed, or it is not a fast one.
    """
    from transformers import AutoTokenizer

    folder = tokenizer_folder(path, field)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # errors of many types, such as ImportError for a missing package
        raise UserError(unloadable(error, field, path)) from error
    if not tokenizer.is_fast:
        raise UserError(
            Problem(
                field,
                "this is not a fast tokenizer (no tokenizer.json)",
                "convert it, or take one that has a tokenizer.json",
                path,
            )
        )
    return tokenizer


def encode_documents(
    tokenizer: PreTrainedTokenizerFast, texts: list[str], append_eos: bool, prepend_bos: bool = False
) -> list[list[int]]:
    """Token ids of each document, without special tokens except the end of sequence for ``append_eos``, and its
    beginning for ``prepend_bos``."""
    if not texts:
        return []
    documents = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )["input_ids"]
    if append_eos:
        for document in documents:
            document.append(tokenizer.eos_token_id)
    if prepend_bos:
        for document in documents:
            document.insert(0, tokenizer.bos_token_id)
    return documents


def check_borders(tokenizer: PreTrainedTokenizerFast, append_eos: bool, prepend_bos: bool = False) -> None:
    """Refuse to end or begin documents with a token that the tokenizer does not have."""
    if prepend_bos and tokenizer.bos_token_id is None:
        why = "the tokenizer has no beginning-of-sequence token"
        raise UserError(Problem("data.prepend_bos", why, "leave it out, or give the tokenizer a bos_token", True))
    if append_eos and tokenizer.eos_token_id is None:
        raise UserError(
            Problem(
                "data.append_eos",
                "the tokenizer has no end-of-sequence token",
                "set data.append_eos=false, or give the tokenizer an eos_token",
                True,
            )
        )
