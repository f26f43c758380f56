"""Load a recipe's documents, drop repeated and empty ones, and split the rest into training and held-out documents."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import Problem, UserError
from .content_stamp import hash_json
from .corpus_stats import Stats, digest
from .data_config import DataConfig
from .document_source import DocumentSource
from .file_formats import listed
from .held_out import first_of_each, split_documents, text_hash

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("trireme.data")


@dataclass
class Documents:
    """Documents with their hashes and sizes."""

    data: Dataset
    hashes: np.ndarray
    """Hash of every text (uint64)."""
    sizes: np.ndarray
    """Bytes of every text (int64)."""
    repeats: int = 0
    """Documents dropped because they repeat another one."""
    empty: int = 0
    """Documents dropped because they hold no text."""

    def __len__(self) -> int:
        return len(self.hashes)

    def select(self, rows: np.ndarray) -> Documents:
        return Documents(self.data.select(rows, keep_in_memory=True), self.hashes[rows], self.sizes[rows])


def split(
    config: DataConfig, source: DocumentSource, eval_source: DocumentSource | None, temporary: Path
) -> tuple[Dataset, Dataset, Stats]:
    """Train and held-out documents, and the statistics so far (``bytes_per_token`` still holds bytes).

    Raises:
        UserError: bad input, no documents, or an empty split.
    """
    start = time.perf_counter()
    every = [load_documents(config, source, temporary / "source")]
    repeats = 0
    if eval_source:
        every.append(held_out := load_documents(config, eval_source, temporary / "eval_source"))
        repeated = np.isin(every[0].hashes, held_out.hashes) & config.deduplicate
        train, repeats = every[0].select(np.flatnonzero(~repeated)), int(repeated.sum())
    else:
        train, held_out = (every[0].select(rows) for rows in split_documents(every[0].hashes, config.held_out))
    opened = [source] + ([eval_source] if eval_source else [])
    stats = Stats(
        documents=len(train) + len(held_out),
        duplicates_dropped=repeats + sum(documents.repeats for documents in every),
        undecodable_skipped=sum(one.skipped for one in opened),
        empty_documents=sum(documents.empty for documents in every),
        without_text=[name for one in opened for name in one.without_text],
        documents_digest=digest([train.hashes, held_out.hashes]),
        train_documents=len(train),
        held_out_documents=len(held_out),
        bytes_per_token=float(held_out.sizes.sum() or train.sizes.sum()),
    )
    log.info(
        "%d train and %d held-out documents (%.1f MB) in %.1f s",
        len(train),
        len(held_out),
        (train.sizes.sum() + held_out.sizes.sum()) / 1e6,
        time.perf_counter() - start,
    )
    if not len(train) or ((config.held_out or eval_source) and not len(held_out)):
        raise UserError(one_sided(config, len(train) + len(held_out), bool(len(train))))
    return train.data, held_out.data, stats


def one_sided(config: DataConfig, documents: int, all_in_train: bool) -> Problem:
    """The problem of a split that would be empty."""
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


def load_documents(config: DataConfig, source: DocumentSource, temporary: Path) -> Documents:
    """The documents of one source that hold text, repeated ones once.

    Raises:
        UserError: there are none.
    """
    from datasets import Features, Value

    temporary.mkdir()
    data, hashes, sizes = source.load(str(temporary)), np.empty(0, np.uint64), np.empty(0, np.int64)
    if len(data):
        measured = map_into(
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
        raise UserError(no_documents(source.key, len(data), source.without_text))
    if config.deduplicate:
        kept = kept[first_of_each(hashes[kept])]
    documents = Documents(data, hashes, sizes).select(kept)
    documents.repeats, documents.empty = full - len(kept), len(data) - full
    return documents


def no_documents(key: str, empty: int, without_text: list[str]) -> Problem:
    """The problem of a source without any text."""
    found = f" ({empty} found, all of them empty)" if empty else ""
    files = f" (nothing in {listed(without_text)})" if without_text else ""
    return Problem(key, f"gives no documents{found}{files}", "point it at text")


def _measure(batch: dict[str, list[str | None]]) -> dict[str, np.ndarray]:
    texts = [text or "" for text in batch["text"]]
    return {
        "hash": np.array([text_hash(text) for text in texts], np.uint64),
        "size": np.array([len(text.encode()) for text in texts], np.int64),
    }


def map_into(data: Dataset, function: Any, features: Any, target: Path, num_proc: int) -> Dataset:
    """``Dataset.map`` in batches into the file ``target``. Its own cache is not needed here, so nothing is hashed."""
    return data.map(
        function,
        batched=True,
        batch_size=256,
        remove_columns=data.column_names,
        features=features,
        num_proc=num_proc if num_proc > 1 and len(data) > num_proc else None,
        load_from_cache_file=False,
        cache_file_name=str(target),
        new_fingerprint=hash_json([str(target)])[:16],
    )
