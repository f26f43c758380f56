"""Open the data of a run as a ``Corpus``: prepare documents or rows, or reuse prepared ones from the cache.

A stream, or a user's own data loader, is read during training instead.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..component import Component
from ..settings import TrainerConfig
from ..tasks.task import Task
from .cache import cache_root
from .chat.chat_config import SAMPLES as CHATS
from .check_tokenizer import lacks_tokenizer
from .corpus import Corpus
from .data_config import DataConfig
from .open_mixture import open_mixture
from .prepare import prepared_folder
from .samples import Given
from .streaming import StreamingCorpus
from .token_corpus import IndexedCorpus

log = logging.getLogger("trireme.data")


def open_corpus(
    config: DataConfig,
    seed: int,
    settings: TrainerConfig,
    task: Task,
    collator: Component | None = None,
    tokenizer_folder: str | None = None,
    model: Any = None,
) -> Corpus:
    """Open the corpus of a recipe, and prepare it if needed; all ranks may call this at once.

    Args:
        seed: seed of the order of samples.
        settings: settings with the batch sizes (and, for a stream, the number of held-out samples to collect).
        task: the recipe's task, which says what samples are made of.
        collator: the recipe's collator; None takes the one of the task.
        tokenizer_folder: folder of the model's weights, whose tokenizer is used unless the recipe names another.
        model: the model's transformers configuration.

    Raises:
        UserError: the documents, the tokenizer or the cache folder are not usable.
    """
    corpus = _opened(config, seed, settings, collator, tokenizer_folder, task, model)
    if corpus.train_size is not None and corpus.train_size < settings.global_batch_size:
        passes = settings.global_batch_size / corpus.train_size
        of = f"over the {corpus.train_size} train samples"
        log.info("one step takes %d samples: %.3g passes %s", settings.global_batch_size, passes, of)
    return corpus


def _opened(
    config: DataConfig,
    seed: int,
    settings: TrainerConfig,
    collator: Component | None,
    tokenizer_folder: str | None,
    task: Task,
    model: Any,
) -> Corpus:
    if config.loader is not None:
        from .loader_corpus import LoaderCorpus

        beside = Path(tokenizer_folder) if tokenizer_folder else None
        return LoaderCorpus(config, seed, settings, collator, task, beside, model)
    if task.samples is not None or config.chat is not None:
        return _rows(config, seed, settings, collator, tokenizer_folder, task, model)
    config = _with_tokenizer(config, tokenizer_folder)
    if config.sources is not None:
        return open_mixture(config, seed, settings, collator, task, model)
    if config.streaming:
        return StreamingCorpus(config, seed, settings, collator, task, model)
    folder, tokenizer = prepared_folder(config)
    corpus = IndexedCorpus(config, seed, settings, collator, task, tokenizer, folder, model)
    log.info(
        "corpus %s: %d train samples, %d held-out samples of up to %d tokens",
        folder.name,
        len(corpus.train),
        len(corpus.held_out),
        corpus.length,
    )
    return corpus


def _rows(
    config: DataConfig,
    seed: int,
    settings: TrainerConfig,
    collator: Component | None,
    weights: str | None,
    task: Task,
    model: Any,
) -> Corpus:
    """The corpus of a task that learns from rows."""
    from .open_samples import made_samples, open_samples
    from .prepare_rows import prepared_rows
    from .row_source import NO_STREAM
    from .rows_corpus import RowsCorpus

    kind = open_samples(str(task.samples or CHATS), config.samples)
    if config.streaming:
        raise UserError(NO_STREAM)
    beside = Path(weights) if weights else None
    if config.sources is not None:
        from .mixed_rows import open_mixed_rows

        return open_mixed_rows(config, seed, settings, collator, task, kind, beside, model)
    rows = prepared_rows(config, kind.columns)
    given = Given(config, rows.train, cache_root(config.cache_dir), rows.print, beside, model)
    samples = made_samples(kind, given, config.samples)
    corpus = RowsCorpus(config, seed, settings, collator, task, samples, rows, model)
    log.info("rows %s: %d train samples, %d held-out samples", rows.print, len(corpus.train), len(corpus.held_out))
    return corpus


def _with_tokenizer(config: DataConfig, tokenizer_folder: str | None) -> DataConfig:
    """Use the weights' own tokenizer unless the recipe names one, since weights only fit the tokens they know."""
    if tokenizer_folder is None or config.tokenizer.path is not None:
        return config
    if problem := lacks_tokenizer(Path(tokenizer_folder), "model.weights", tokenizer_folder):
        raise UserError(problem)
    return replace(config, tokenizer=replace(config.tokenizer, path=tokenizer_folder))
