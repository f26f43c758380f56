"""Tokenize all rows of a data set once and cache the tokens, so that rows can be packed by their lengths. For
``data.group_by_length``, only the lengths are cached.

Without packing, a row is tokenized when it is read. Packing needs the lengths of all rows beforehand. So tokens and
labels are computed once and cached in the same format as those of documents (``token_files.py``), and no training step
waits for a tokenizer.
"""

from __future__ import annotations

import inspect
import logging
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import Problem, UserError
from ..component_errors import component_errors
from .base_collator import Sample
from .cache import built_once, cache_root
from .content_stamp import hash_json
from .corpus_stats import digest
from .data_config import DataConfig
from .packed_rows import BinnedDocuments
from .report.set_facts import AT_ONCE
from .samples import Samples
from .token_files import Column, ColumnWriter
from .tokenizer import content_hash

if TYPE_CHECKING:
    from .rows_corpus import RowSamples

log = logging.getLogger("trireme.data")
VERSION = 1
ALLOWED = {"input_ids", "labels", "attention_mask", "index"}
"""Fields that a sample may have if it shares a row with others."""
NOT_IN_TOKENS = {
    *("source", "sources", "eval_source", "eval_sets", "test_source", "held_out", "deduplicate", "cache_dir"),
    *("shuffle", "shuffle_window", "streaming", "num_workers", "num_proc", "packing", "overflow", "group_by_length"),
}
"""Keys of ``data`` that do not change the tokens of a row; which rows there are is in their fingerprint."""


def packed_samples(config: DataConfig, seed: int, rows: RowSamples, print_: str) -> BinnedDocuments:
    """A data set that packs the samples of ``rows`` into bins.

    Args:
        print_: fingerprint of the rows.

    Raises:
        UserError: a row is not usable, or samples are not tokens with labels.
    """
    folder = cache_root(config.cache_dir) / f"row-tokens-{hash_json(_content(config, rows, print_))[:24]}"
    with built_once(folder) as scratch:
        if scratch:
            _write(rows, scratch)
    tokens, labels, ends = (Column(str(folder / f"{name}.arrow")) for name in ("tokens", "labels", "ends"))
    return BinnedDocuments(tokens, ends, config.block_size, config.overflow, seed, config.shuffle, labels)


def measured_samples(config: DataConfig, rows: RowSamples, print_: str) -> np.ndarray:
    """[rows], length of each row as its class of samples measures it (``Samples.lengths``).

    Raises:
        UserError: it measures none.
    """
    if rows.lengths is not None:
        return rows.lengths
    folder = cache_root(config.cache_dir) / f"row-lengths-{hash_json(_content(config, rows, print_))[:24]}"
    with built_once(folder) as scratch:
        if scratch:
            _measure(rows, scratch)
    return np.load(folder / "lengths.npy", mmap_mode="r", allow_pickle=False)


def _measure(rows: RowSamples, folder: Path) -> None:
    found = []
    for first in range(0, len(rows), AT_ONCE):
        batch = rows.rows[first : min(first + AT_ONCE, len(rows))]
        with component_errors("task", rows.samples, "lengths"):
            measured = rows.samples.lengths(batch)
        if not measured:
            why = f"needs lengths, and {type(rows.samples).__name__} measures none"
            raise UserError(Problem("data.group_by_length", why, "write lengths(rows) in it, or leave this out", True))
        found.append(sum(np.nan_to_num(np.asarray(values, np.float64)) for values in measured.values()))
    np.save(folder / "lengths.npy", np.concatenate(found) if found else np.empty(0))


def _content(config: DataConfig, rows: RowSamples, print_: str) -> list[Any]:
    """Everything that determines the tokens of rows, the code of the class included."""
    kind, tokenizer = type(rows.samples), rows.samples.tokenizer
    code = [_code(one) for one in kind.__mro__ if issubclass(one, Samples)]
    processor = content_hash(tokenizer) if hasattr(tokenizer, "backend_tokenizer") else repr(type(tokenizer))
    options = {name: value for name, value in asdict(config).items() if name not in NOT_IN_TOKENS}
    template = str(getattr(tokenizer, "chat_template", None))
    # What ``Samples.made`` has made lies in folders that are named by their content.
    made = [Path(file["filename"]).parts[-3:] for file in getattr(rows.rows, "cache_files", ())]
    lengths = digest([rows.lengths]) if rows.lengths is not None else ""
    return [VERSION, print_, kind.__qualname__, code, processor, template, options, made, lengths]


def _write(rows: RowSamples, folder: Path) -> None:
    start, total = time.perf_counter(), 0
    paths = [str(folder / f"{name}.arrow") for name in ("tokens", "labels", "ends")]
    with (
        ColumnWriter(paths[0], np.int32) as tokens,
        ColumnWriter(paths[1], np.int32) as labels,
        ColumnWriter(paths[2], np.int64) as ends,
    ):
        for index in range(len(rows)):
            sample = rows[index]
            found = np.asarray(sample.get("input_ids", ()))
            beside = np.asarray(sample.get("labels", found))
            if found.ndim != 1 or not len(found) or found.shape != beside.shape or sample.keys() - ALLOWED:
                raise UserError(_no_tokens(sample, rows))
            total += len(found)
            tokens.add(found)
            labels.add(beside)
            ends.add(np.array([total]))
    log.info("tokenized %d rows into %d tokens in %.1f s", len(rows), total, time.perf_counter() - start)


def _no_tokens(sample: Sample, rows: RowSamples) -> Problem:
    shapes = ", ".join(f"{name} {list(np.shape(value))}" for name, value in sample.items() if name != "index")
    why = (
        f"packs samples of tokens (input_ids, and labels beside them), and {type(rows.samples).__name__} gives {shapes}"
    )
    return Problem("data.packing", why, "set data.packing=false", "bins")


def _code(kind: type) -> str:
    """The source code of a class's file; empty if there is none, as for a class of an interactive session."""
    try:
        return inspect.getsource(sys.modules[kind.__module__])
    except (KeyError, OSError, TypeError):
        return ""
