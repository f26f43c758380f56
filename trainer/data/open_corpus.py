"""Open the corpus of a run: prepare its documents, use prepared ones from the cache, or begin a stream."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from ...errors import UserError
from ..component import Component
from ..settings import TrainerConfig
from .check_tokenizer import lacks_tokenizer
from .corpus import Corpus, IndexedCorpus
from .data_config import DataConfig
from .prepare import prepared_folder
from .streaming import StreamingCorpus

log = logging.getLogger("trireme.data")


def open_corpus(
    config: DataConfig,
    seed: int,
    settings: TrainerConfig,
    collator: Component | None = None,
    tokenizer_folder: str | None = None,
) -> Corpus:
    """Open the corpus of a recipe, and prepare it if needed; all ranks may call this at once.

    Args:
        seed: seed of the order of samples.
        settings: settings with the batch sizes (and, for a stream, the number of held-out samples to collect).
        collator: the recipe's collator; None takes the one for next-token prediction.
        tokenizer_folder: folder of the model's weights, whose tokenizer is used unless the recipe names another.

    Raises:
        UserError: the documents, the tokenizer or the cache folder are not usable.
    """
    config = _with_tokenizer(config, tokenizer_folder)
    if config.streaming:
        return StreamingCorpus(config, seed, settings, collator)
    folder, tokenizer = prepared_folder(config)
    corpus = IndexedCorpus(config, seed, settings, collator, tokenizer, folder)
    log.info(
        "corpus %s: %d train samples, %d held-out samples of up to %d tokens",
        folder.name,
        len(corpus.train),
        len(corpus.held_out),
        config.block_size,
    )
    return corpus


def _with_tokenizer(config: DataConfig, tokenizer_folder: str | None) -> DataConfig:
    """Use the weights' own tokenizer unless the recipe names one, since weights only fit the tokens they know."""
    if tokenizer_folder is None or config.tokenizer.path is not None:
        return config
    if problem := lacks_tokenizer(Path(tokenizer_folder), "model.weights", tokenizer_folder):
        raise UserError(problem)
    return replace(config, tokenizer=replace(config.tokenizer, path=tokenizer_folder))
