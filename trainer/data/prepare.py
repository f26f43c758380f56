"""Prepares an indexed corpus once: load, hash, deduplicate, split, train the tokenizer, tokenize, write.

The result lies in ``cache_dir/<fingerprint>`` (see ``cache.py``): the first process that asks works, others find it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ...errors import Problem, UserError
from ..component import instantiate
from .cache import built_once, cache_root
from .data_config import DataConfig
from .held_out import first_of_each, split_documents, text_hash
from .sources import Source
from .token_files import Column, write_column
from .tokenizer import check_eos, content_hash, encode_documents, load_or_train, load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger("trireme.data")
VERSION = 2
"""Counts up when preparation changes, so that older caches are left alone."""


@dataclass
class Stats:
    """What is known of a corpus. Of a stream most is not: None."""

    documents: int | None = None
    """Documents of the sources, empty and repeated ones not counted."""
    duplicates_dropped: int | None = None
    """Documents that repeat another one."""
    undecodable_skipped: int | None = None
    """Files that could not be decoded (Python sources only; others are refused)."""
    train_documents: int | None = None
    held_out_documents: int | None = None
    train_tokens: int | None = None
    held_out_tokens: int | None = None
    train_blocks: int | None = None
    """Samples of one epoch."""
    held_out_blocks: int | None = None
    bytes_per_token: float | None = None
    """UTF-8 bytes per token of the held-out documents (of the train documents, if none are held out)."""
    unigram_entropy: float | None = None
    """Entropy in nats of the held-out tokens' own frequencies: a model that knows no context cannot get below it."""


def unigram_entropy(counts: np.ndarray) -> float:
    """Entropy in nats of a distribution given by counts."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def prepared_folder(config: DataConfig) -> tuple[Path, PreTrainedTokenizerFast]:
    """The folder of the prepared corpus and its tokenizer; prepares them if no one has.

    Raises:
        UserError: bad input, no documents, everything in one split, or no room for the cache.
    """
    root = cache_root(config.cache_dir)
    source = instantiate(config.source)
    eval_source = instantiate(config.eval_source) if config.eval_source else None
    prints = [source.fingerprint(), eval_source.fingerprint() if eval_source else None]
    content = [prints, config.held_out, config.deduplicate]
    pretrained = load_tokenizer(config.tokenizer.path) if config.tokenizer.path else None
    which = content_hash(pretrained) if pretrained else asdict(config.tokenizer)
    folder = root / _hash([VERSION, content, which, config.append_eos])
    with built_once(folder) as scratch:
        if scratch:
            _prepare(config, source, eval_source, pretrained, _hash(content), root, scratch)
    return folder, pretrained or load_tokenizer(str(folder / "tokenizer"))


def _prepare(
    config: DataConfig,
    source: Source,
    eval_source: Source | None,
    pretrained: PreTrainedTokenizerFast | None,
    content: str,
    root: Path,
    scratch: Path,
) -> None:
    """Fill ``scratch`` with train and held-out tokens, the tokenizer and the stats."""
    start, temporary = time.perf_counter(), scratch / "temporary"
    temporary.mkdir()
    with _progress_bars():
        train, held_out, stats = _split(config, source, eval_source, temporary)
        tokenizer = pretrained or load_or_train(config.tokenizer, partial(_texts, train), content, str(root))
        check_eos(tokenizer, config.append_eos)
        if not pretrained:
            tokenizer.save_pretrained(scratch / "tokenizer")
        stats.train_tokens = _tokenize(config, train, tokenizer, scratch / "train", temporary)
        stats.held_out_tokens = _tokenize(config, held_out, tokenizer, scratch / "held_out", temporary)
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


def _split(
    config: DataConfig, source: Source, eval_source: Source | None, temporary: Path
) -> tuple[Dataset, Dataset, Stats]:
    """Train and held-out documents, and what the stats say so far (``bytes_per_token`` still holds bytes)."""
    start = time.perf_counter()
    data, hashes, sizes, repeats = _documents(config, source, temporary / "source")
    if eval_source:
        eval_data, eval_hashes, eval_sizes, eval_repeats = _documents(config, eval_source, temporary / "eval_source")
        keep = ~np.isin(hashes, eval_hashes) if config.deduplicate else np.ones(len(hashes), bool)
        train = data.select(np.flatnonzero(keep), keep_in_memory=True)
        held_out, held_out_bytes = eval_data, eval_sizes.sum()
        train_bytes, repeats = sizes[keep].sum(), repeats + eval_repeats + int((~keep).sum())
    else:
        chosen, kept_back = split_documents(hashes, config.held_out)
        train, held_out = (data.select(rows, keep_in_memory=True) for rows in (chosen, kept_back))
        train_bytes, held_out_bytes = sizes[chosen].sum(), sizes[kept_back].sum()
    stats = Stats(
        documents=len(train) + len(held_out),
        duplicates_dropped=repeats,
        undecodable_skipped=getattr(source, "skipped", 0),
        train_documents=len(train),
        held_out_documents=len(held_out),
        bytes_per_token=float(held_out_bytes or train_bytes),
    )
    log.info(
        "%d train and %d held-out documents (%.1f MB), %d duplicates dropped, %d undecodable files skipped, in %.1f s",
        len(train),
        len(held_out),
        (train_bytes + held_out_bytes) / 1e6,
        repeats,
        stats.undecodable_skipped,
        time.perf_counter() - start,
    )
    if not len(train) or ((config.held_out or eval_source) and not len(held_out)):
        raise UserError(_one_sided(config, len(train) + len(held_out), bool(len(train))))
    return train, held_out, stats


def _one_sided(config: DataConfig, documents: int, all_in_train: bool) -> Problem:
    if config.eval_source:
        return Problem(
            "data.eval_source",
            "every train document stands in the evaluation source too",
            "name other documents, or set data.deduplicate=false",
        )
    side = "train" if all_in_train else "held-out"
    which = "the only document" if documents == 1 else "every document"
    return Problem(
        "data.held_out",
        f"{which} falls into the {side} split, so the other one is empty",
        "give more documents (data.source.split_text=paragraph makes many of one text file), name a "
        "data.eval_source, or set data.held_out=0",
        config.held_out,
    )


def _documents(config: DataConfig, source: Source, temporary: Path) -> tuple[Dataset, np.ndarray, np.ndarray, int]:
    """Documents that count, their hashes (uint64) and sizes in bytes, and how many repeats were dropped."""
    from datasets import Features, Value

    temporary.mkdir()
    data, hashes, sizes = source.load(str(temporary)), np.empty(0, np.uint64), np.empty(0, np.int64)
    if len(data):
        measured = _map(
            data,
            _measure,
            Features({"hash": Value("uint64"), "size": Value("int64")}),
            temporary / "hashes.arrow",
            config.num_proc,
        )
        hashes, sizes = (measured.data[name].to_numpy() for name in ("hash", "size"))
    kept = np.flatnonzero(sizes)
    full = len(kept)
    if not full:
        found = f" ({len(data)} found, all of them empty)" if len(data) else ""
        raise UserError(Problem(f"data.{temporary.name}", f"gives no documents{found}", "point it at text"))
    if config.deduplicate:
        kept = kept[first_of_each(hashes[kept])]
    return data.select(kept, keep_in_memory=True), hashes[kept], sizes[kept], full - len(kept)


def _measure(batch: dict[str, list[str | None]]) -> dict[str, np.ndarray]:
    texts = [text or "" for text in batch["text"]]
    return {
        "hash": np.array([text_hash(text) for text in texts], np.uint64),
        "size": np.array([len(text.encode()) for text in texts], np.int64),
    }


def _tokenize(
    config: DataConfig, documents: Dataset, tokenizer: PreTrainedTokenizerFast, target: Path, temporary: Path
) -> int:
    """Write ``<target>.arrow`` (tokens end to end) and ``<target>_ends.arrow``; returns the number of tokens."""
    from datasets import Features, LargeList, Value

    start = time.perf_counter()
    dtype = "uint16" if len(tokenizer) <= 2**16 else "int32"
    rows = _map(
        documents,
        partial(_encode, tokenizer=tokenizer, append_eos=config.append_eos),
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


def _encode(batch: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast, append_eos: bool) -> dict[str, Any]:
    return {"tokens": encode_documents(tokenizer, batch["text"], append_eos)}


def _running_ends(lengths: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    total = 0
    for part in lengths:
        ends = total + np.cumsum(part, dtype=np.int64)
        total = int(ends[-1]) if len(ends) else total
        yield ends


def _map(data: Dataset, function: Any, features: Any, target: Path, num_proc: int) -> Dataset:
    """``Dataset.map`` in batches into one place of our own; its own cache is of no use here, so nothing is hashed."""
    return data.map(
        function,
        batched=True,
        batch_size=256,
        remove_columns=data.column_names,
        features=features,
        num_proc=num_proc if num_proc > 1 and len(data) > num_proc else None,
        load_from_cache_file=False,
        cache_file_name=str(target),
        new_fingerprint=_hash([str(target)])[:16],
    )


def _texts(documents: Dataset) -> Iterator[str]:
    for batch in documents.iter(batch_size=256):
        yield from cast("dict[str, list[str]]", batch)["text"]


@contextlib.contextmanager
def _progress_bars() -> Iterator[None]:
    """Bars of `datasets` for people only: in a log file they are noise."""
    import datasets

    disabled = datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


def _hash(value: Any) -> str:
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=12).hexdigest()
