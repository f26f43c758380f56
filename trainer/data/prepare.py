"""Prepare a corpus of documents: load, hash, remove duplicates, split, train the tokenizer, tokenize, and write.

The result is stored in ``cache_dir/<fingerprint>`` (see ``cache.py``). The first process builds it, and all others read
it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..spinner import draws
from .cache import built_once, cache_root
from .corpus_stats import digest, unigram_entropy
from .data_config import DataConfig
from .document_source import SOURCE, DocumentSource, sources
from .split_corpus import map_into, split
from .token_files import Column, write_column
from .tokenizer import check_borders, content_hash, encode_documents, load_or_train, load_tokenizer, trained_by

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger("trireme.data")
VERSION = 2
"""Version of the preparation, raised when it changes, so that older caches are not used."""


def prepared_folder(
    config: DataConfig, key: str = SOURCE, tokenizer: PreTrainedTokenizerFast | None = None
) -> tuple[Path, PreTrainedTokenizerFast]:
    """The folder of the prepared corpus, and its tokenizer; both are built if they are not in the cache.

    Args:
        key: where the source stands in the recipe.
        tokenizer: the tokenizer to use; None takes that of ``config``.

    Raises:
        UserError: bad input, no documents, an empty split, or no space for the cache.
    """
    root = cache_root(config.cache_dir)
    source, *others = sources(config.source, config.eval_source, streaming=False, key=key)
    eval_source = others[0] if others else None
    prints = [source.fingerprint(), eval_source.fingerprint() if eval_source else None]
    for note in (note for opened in (source, *others) for note in opened.notes()):
        log.info("%s", note)
    content = [prints, config.held_out, config.deduplicate]
    pretrained = tokenizer or (load_tokenizer(config.tokenizer.path) if config.tokenizer.path else None)
    which = content_hash(pretrained) if pretrained else trained_by(config.tokenizer)
    folder = root / _hash([VERSION, content, which, borders_print(config)])
    with built_once(folder) as scratch:
        if scratch:
            _prepare(config, source, eval_source, pretrained, _hash(content), root, scratch)
    return folder, pretrained or load_tokenizer(str(folder / "tokenizer"))


def _prepare(
    config: DataConfig,
    source: DocumentSource,
    eval_source: DocumentSource | None,
    pretrained: PreTrainedTokenizerFast | None,
    content: str,
    root: Path,
    scratch: Path,
) -> None:
    """Fill ``scratch`` with train and held-out tokens, the tokenizer and the stats."""
    start, temporary = time.perf_counter(), scratch / "temporary"
    temporary.mkdir()
    with progress_bars():
        train, held_out, stats = split(config, source, eval_source, temporary)
        tokenizer = pretrained or load_or_train(config.tokenizer, partial(texts_of, train), content, str(root))
        check_borders(tokenizer, *config.borders)
        if not pretrained:
            tokenizer.save_pretrained(scratch / "tokenizer")
        stats.train_tokens = write_tokens(config, train, tokenizer, scratch / "train", temporary)
        stats.held_out_tokens = write_tokens(config, held_out, tokenizer, scratch / "held_out", temporary)
        stats.tokens_digest = digest(
            part for name in ("train", "held_out") for part in Column(str(scratch / f"{name}.arrow")).parts
        )
    if stats.held_out_tokens:
        column = Column(str(scratch / "held_out.arrow"))
        counts = sum(np.bincount(part, minlength=len(tokenizer)) for part in column.parts)
        stats.unigram_entropy = unigram_entropy(np.asarray(counts))
    measured = stats.held_out_tokens or stats.train_tokens
    stats.bytes_per_token = (stats.bytes_per_token or 0) / max(measured, 1)
    shutil.rmtree(temporary)
    (scratch / "stats.json").write_text(json.dumps(asdict(stats), indent=1))
    log.info(
        "prepared %d train tokens and %d held-out tokens in %.1f s",
        stats.train_tokens,
        stats.held_out_tokens,
        time.perf_counter() - start,
    )


def write_tokens(
    config: DataConfig, documents: Dataset, tokenizer: PreTrainedTokenizerFast, target: Path, temporary: Path
) -> int:
    """Write ``<target>.arrow`` (tokens end to end) and ``<target>_ends.arrow``; returns the number of tokens."""
    from datasets import Features, LargeList, Value

    start = time.perf_counter()
    dtype = "uint16" if len(tokenizer) <= 2**16 else "int32"
    rows = map_into(
        documents,
        partial(_encode, tokenizer=tokenizer, borders=config.borders),
        Features({"tokens": LargeList(Value(dtype))}),
        temporary / f"{target.name}.arrow",
        config.num_proc,
    )
    chunks = rows.data["tokens"].chunks if len(rows) else []
    ends = _running_ends(chunk.value_lengths().to_numpy() for chunk in chunks)
    write_column(f"{target}_ends.arrow", ends, np.int64)
    tokens = write_column(f"{target}.arrow", (chunk.flatten().to_numpy() for chunk in chunks), np.dtype(dtype))
    log.info(
        "tokenized %d documents into %d %s tokens in %.1f s",
        len(documents),
        tokens,
        target.name.replace("_", "-"),
        time.perf_counter() - start,
    )
    return tokens


def _encode(
    batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast, borders: tuple[bool, bool]
) -> dict[str, Any]:
    return {"tokens": encode_documents(tokenizer, batch["text"], *borders)}


def borders_print(config: DataConfig) -> bool | list[bool]:
    """Part of the fingerprint of prepared tokens: whether documents get a token at their end and beginning."""
    return [*config.borders] if config.prepend_bos else config.append_eos


def _running_ends(lengths: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    total = 0
    for part in lengths:
        ends = total + np.cumsum(part, dtype=np.int64)
        total = int(ends[-1]) if len(ends) else total
        yield ends


def texts_of(documents: Dataset) -> Iterator[str]:
    """The texts of prepared documents, in order."""
    for batch in documents.iter(batch_size=256):
        yield from cast("dict[str, list[str]]", batch)["text"]


@contextlib.contextmanager
def progress_bars() -> Iterator[None]:
    """Context in which `datasets` shows progress bars only on a terminal, not in a log file."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    if not draws():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()
