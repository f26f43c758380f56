"""Prepare a run's additional evaluation sets, which are used beside its held-out set: those in ``data.eval_sets``, and
the test set.

Each set is prepared on its own when it is first used. These sets never change the training data.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ...errors import Problem, UserError
from ..component import Component
from .cache import built_once, cache_root
from .content_stamp import hash_json
from .data_config import HELD_OUT, TEST, DataConfig
from .document_source import DocumentSource
from .held_out import first_of_each
from .prepare import borders_print, progress_bars, write_tokens
from .prepare_rows import VERSION, row_hashes, without_decoding
from .row_source import RowSource
from .split_corpus import load_documents
from .tokenizer import content_hash

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger("trireme.data")
Source = TypeVar("Source", bound=DocumentSource)


def prefix_of(name: str) -> str:
    """Prefix of the names of a set's metrics, such as ``eval_``; also for the held-out set."""
    return {HELD_OUT: "eval_", TEST: "test_"}.get(name, f"eval_{name}_")


def further_rows(config: DataConfig, name: str, wanted: Mapping[str, bool]) -> Dataset:
    """Rows of a further set, from the cache if they are there.

    Raises:
        UserError: there is no such set, or its source is not usable.
    """
    from datasets import load_from_disk

    source = _opened(RowSource, config, name)

    def build(scratch: Path, temporary: Path) -> None:
        data = source.rows_of(str(temporary), wanted, config.columns)
        if source.left_out:
            log.info("%s: %s", source.key, source.left_out)
        if source.unread:
            log.info("%s", source.unread)
        kept = first_of_each(row_hashes(data)) if config.deduplicate else np.arange(len(data))
        if not len(kept):
            raise UserError(Problem(source.key, "gives no rows", "point it at data", source.name))
        without_decoding(data.select(kept)).save_to_disk(str(scratch / "rows"), num_proc=None)

    content = [VERSION, source.fingerprint(), dict(wanted), config.columns, config.deduplicate]
    rows = load_from_disk(str(_built(config, "rows-set", content, build) / "rows"))
    log.info("%s: %d rows", source.key, len(rows))
    return rows  # type: ignore[return-value]


def further_tokens(config: DataConfig, name: str, tokenizer: Any) -> Path:
    """Folder with the tokens of a further set of documents (``<name>.arrow`` and ``<name>_ends.arrow``).

    Raises:
        UserError: there is no such set, or its source is not usable.
    """
    source = _opened(DocumentSource, config, name)

    def build(scratch: Path, temporary: Path) -> None:
        documents = load_documents(config, source, temporary / "source")
        write_tokens(config, documents.data, tokenizer, scratch / name, temporary)

    ends = borders_print(config)
    content = [source.fingerprint(), content_hash(tokenizer), ends, config.deduplicate, name]
    return _built(config, "set", content, build)


def _opened(kind: type[Source], config: DataConfig, name: str) -> Source:
    """The source of a further set, with its contract checked."""
    key, component = source_of(config, name)
    source = kind(component, key)
    source.check(streaming=False)
    return source


def _built(config: DataConfig, kind: str, content: list[Any], build: Callable[[Path, Path], None]) -> Path:
    """The folder in the cache that is named by ``content``, built once.

    Args:
        build: fills the first of two folders; the second is for temporary files.
    """
    folder = cache_root(config.cache_dir) / f"{kind}-{hash_json(content)[:24]}"
    with built_once(folder) as scratch:
        if scratch:
            with progress_bars():
                temporary = scratch / "temporary"
                temporary.mkdir()
                build(scratch, temporary)
                shutil.rmtree(temporary)
    return folder


def source_of(config: DataConfig, name: str) -> tuple[str, Component]:
    """Key and component of a further set.

    Raises:
        UserError: there is no such set.
    """
    if name == TEST and config.test_source is not None:
        return "data.test_source", config.test_source
    if name in config.eval_sets:
        return f"data.eval_sets.{name}", config.eval_sets[name]
    key = "data.test_source" if name == TEST else f"data.eval_sets.{name}"
    known = [HELD_OUT, *config.eval_sets, *([TEST] if config.test_source is not None else [])]
    fix = f"write {key} in the recipe, or name one of {', '.join(known)}"
    raise UserError(Problem("--on", "there is no such set", fix, name))
