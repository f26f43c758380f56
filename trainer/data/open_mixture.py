"""Open a corpus that mixes several sources of documents: one corpus for each source, all with the same tokenizer.

A new tokenizer is trained on the documents of all sources, whatever their weights are. So changed weights need no new
preparation, and the prepared data of a source is reused by every mixture with the same tokenizer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from ..component import Component
from ..settings import TrainerConfig
from .cache import cache_root
from .content_stamp import hash_json
from .data_config import DataConfig
from .document_source import DocumentSource, sources
from .mixed_source import of_source, source_key
from .mixture import IndexedMixture, Mixture, StreamedMixture, interleave_of
from .prepare import prepared_folder, progress_bars, texts_of
from .split_corpus import split
from .streaming import StreamingCorpus, train_texts
from .token_corpus import IndexedCorpus
from .tokenizer import load_or_train, load_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

    from ..tasks.task import Task


def open_mixture(
    config: DataConfig, seed: int, settings: TrainerConfig, collator: Component | None, task: Task, model: Any
) -> Mixture:
    """The corpus of a mixture of documents; see ``open_corpus``."""
    tokenizer = _tokenizer(config)
    limits = _limits(config, settings)
    parts: dict[str, Any] = {}
    for name, part in config.parts().items():
        with of_source(name):
            if config.streaming:
                asked = replace(settings, eval_samples=limits[name])
                if parts and config.eval_source is not None:  # the first source holds out for all
                    part = replace(part, eval_source=None, held_out=0.0)
                parts[name] = StreamingCorpus(part, seed, asked, collator, task, model, source_key(name), tokenizer)
            else:
                folder, _ = prepared_folder(part, source_key(name), tokenizer)
                parts[name] = IndexedCorpus(part, seed, settings, collator, task, tokenizer, folder, model)
    kind = StreamedMixture if config.streaming else IndexedMixture
    return kind(config, seed, settings, collator, task, model, parts)


def _limits(config: DataConfig, settings: TrainerConfig) -> dict[str, int | None]:
    """Held-out samples that each stream collects before training."""
    limit, interleave = settings.eval_samples, interleave_of(config)
    if limit is None or config.eval_source is not None:
        return dict.fromkeys(interleave.names, limit)
    return dict(zip(interleave.names, interleave.wanted(limit), strict=True))


def _tokenizer(config: DataConfig) -> Any:
    """The tokenizer that the recipe names, or one trained on the train documents of all sources."""
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    parts = config.parts()
    opened: dict[str, list[DocumentSource]] = {}
    problems: list[Problem | str] = []
    for name, part in parts.items():
        try:
            opened[name] = sources(part.source, part.eval_source, config.streaming, source_key(name))
        except UserError as error:
            problems += error.problems
    if problems:
        raise UserError(*problems)
    prints = [[name, [source.fingerprint() for source in each]] for name, each in opened.items()]
    root = cache_root(config.cache_dir)

    def texts() -> Iterator[str]:
        if config.streaming:
            share = 0.0 if config.eval_source else config.held_out
            yield from in_turn([train_texts(source, share) for source, *_ in opened.values()])
            return
        with TemporaryDirectory(dir=root, prefix="documents-") as folder, progress_bars():
            train = [_train(part, opened[name], Path(folder, name)) for name, part in parts.items()]
            yield from in_turn([texts_of(documents) for documents in train])

    return load_or_train(config.tokenizer, texts, hash_json([prints, config.held_out, config.deduplicate]), str(root))


def _train(config: DataConfig, opened: list[DocumentSource], folder: Path) -> Dataset:
    """The train documents of one source."""
    folder.mkdir()
    source, *others = opened
    return split(config, source, others[0] if others else None, folder)[0]


def in_turn(streams: Iterable[Iterator[str]]) -> Iterator[str]:
    """One text of each stream after the other; streams that have ended are left out."""
    left = list(streams)
    while left:
        for stream in list(left):
            if (text := next(stream, None)) is None:
                left.remove(stream)
            else:
                yield text
