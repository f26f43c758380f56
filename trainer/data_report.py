"""Collect what ``trireme data`` shows of a recipe before any training: facts about its data sets, and samples as
collated for the model.

No model is built, and no process group is created. The samples of the training set are those of the first step. Their
order and all random choices depend only on the seed and the position in the data, so every plan trains on these
samples.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import Problem, UserError
from ..parallel.micro_batch import MicroBatch, map_tensors
from .component import Component
from .data.corpus import Corpus
from .data.data_config import HELD_OUT, TEST, TRAIN, DataConfig
from .data.document_source import EVAL_SOURCE, SOURCE, DocumentSource
from .data.further_sets import source_of
from .data.mixed_source import SOURCES
from .data.report.sample_views import leaves
from .data.report.set_facts import SetFacts, component_text
from .data.report.views import Collated, View, as_view
from .recipe_corpus import recipe_corpus
from .settings import TrainerConfig

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig


@dataclass(frozen=True)
class ShownSample:
    """A sample with the views that show it."""

    collated: Collated
    views: dict[str, View]
    shapes: dict[str, str]
    """Names of its inputs and targets -> type and shape."""


@dataclass(frozen=True)
class DataReport:
    """Sets of a recipe, and samples of one of them."""

    about: dict[str, str]
    """Task, seed, processor and tokenizer."""
    sets: list[SetFacts]
    of: str
    """Name of the set that the samples are of."""
    samples: list[ShownSample]


def report_data(recipe: RecipeConfig, count: int, only: str | None = None) -> DataReport:
    """Open the recipe's data, and describe its sets and some samples.

    Args:
        count: samples to show.
        only: ``train``, ``held_out``, ``test`` or a name in ``data.eval_sets``; None describes all sets, and shows
            samples of the train set.

    Raises:
        UserError: there is no such set, or the data are not usable.
    """
    if only is not None and only not in (known := set_names(recipe.data)):
        raise UserError(Problem("--set", "the recipe has no such set", f"name one of {', '.join(known)}", only))
    corpus = recipe_corpus(recipe, replace(recipe.data, num_workers=0))
    names = [only] if only else [TRAIN, *corpus.eval_sets, *([TEST] if TEST in set_names(recipe.data) else [])]
    sets = [_described(corpus, recipe.data, name) for name in names]
    of = only or TRAIN
    micro_batches = _first_step(corpus, recipe.trainer, count) if of == TRAIN else _evaluated(corpus, of, count)
    with closing(micro_batches):
        return DataReport(
            _about(recipe, corpus), sets, of, [shown_sample(corpus, sample) for sample in islice(micro_batches, count)]
        )


def set_names(config: DataConfig) -> list[str]:
    """Names of the sets of a recipe."""
    held_out = [HELD_OUT] if config.held_out or config.eval_source is not None else []
    test = [TEST] if config.test_source is not None and not config.streaming else []
    return [TRAIN, *held_out, *config.eval_sets, *test]


def _about(recipe: RecipeConfig, corpus: Corpus) -> dict[str, str]:
    tokenizer, processor = corpus.tokenizer, corpus.processor
    found = {"task": str(recipe.task["_target_"]).rpartition(".")[2], "seed": str(recipe.seed)}
    if processor is not None and processor is not tokenizer:
        found["processor"] = type(processor).__name__
    if tokenizer is not None:
        model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", tokenizer)
        found["tokenizer"] = f"{type(model).__name__} of {len(tokenizer):,} tokens"
    return found


def _described(corpus: Corpus, config: DataConfig, name: str) -> SetFacts:
    facts = corpus.describe(name)
    if name == TRAIN:
        facts.notes = [*filter(None, [corpus.stats.left_out()]), *corpus.stats.unread_columns, *facts.notes]
    key, source = _source_of(config, name)
    if name == HELD_OUT and source is config.source:
        facts.source = facts.source or f"a share of {key}, chosen by content (data.held_out={config.held_out:g})"
    elif source:
        facts.source = facts.source or component_text(source)
        facts.notes += DocumentSource(source, key).notes()
    return facts


def _source_of(config: DataConfig, name: str) -> tuple[str, Component | None]:
    """Key and component of a set's source; of a mixture, whose parts are described one by one, only the key."""
    if name == HELD_OUT and config.eval_source is not None:
        return EVAL_SOURCE, config.eval_source
    if name not in (TRAIN, HELD_OUT):
        return source_of(config, name)
    return SOURCE if config.sources is None else SOURCES, config.source


def _first_step(corpus: Corpus, settings: TrainerConfig, count: int) -> Generator[Collated]:
    """The samples of the first steps, in the order in which they are trained on.

    A data rank takes the first samples of a step, so a share that is large enough is all that needs to be collated.
    """
    groups = settings.global_batch_size // settings.micro_batch_size
    wanted = -(-count // settings.micro_batch_size)
    ranks = next((ranks for ranks in range(groups, 0, -1) if groups % ranks == 0 and groups // ranks >= wanted), 1)
    steps = -(-count // (settings.global_batch_size // ranks))
    batches = corpus.train_batches({}, 0, max(steps, 1), 0, ranks)
    try:
        for batch in batches:
            indices = iter(batch.samples)
            for micro in batch.micro_batches:
                yield from collated_rows(corpus, micro, indices)
    finally:
        batches.close()


def _evaluated(corpus: Corpus, name: str, count: int) -> Generator[Collated]:
    """The first samples of a set as an evaluation gets them."""
    for micro in corpus.eval_batches(max(count, 1), 0, 1, name):
        for sample in collated_rows(
            corpus, micro, iter(micro.samples[:: micro.per_sample].tolist())
        ):  # positions are places in the set here
            yield replace(sample, position=None)


def collated_rows(corpus: Corpus, micro: MicroBatch, indices: Iterator[int]) -> Iterator[Collated]:
    """The samples of a micro-batch, without those that only fill a place.

    Args:
        indices: places in the set of the samples, of which each takes one.
    """
    size = micro.per_sample
    for number, position in enumerate(micro.samples[::size].tolist()):
        index = next(indices)
        if position < 0:
            continue
        rows = number if size == 1 else slice(number * size, number * size + size)
        inputs, targets = (map_tensors(tree, partial(_array, rows=rows)) for tree in (micro.inputs, micro.targets))
        yield Collated(inputs, targets, index, position, str(corpus.task.head))


def _array(tensor: Tensor, rows: int | slice) -> Any:
    """A row of a tensor, or the rows of one sample, as numpy has it."""
    one = tensor[rows].cpu()
    return (one.float() if one.dtype is torch.bfloat16 else one).numpy()  # numpy has no bfloat16


def shown_sample(corpus: Corpus, sample: Collated) -> ShownSample:
    """A sample with the views that its corpus gives."""
    views = {name: as_view(value) for name, value in corpus.views(sample).items()}
    shapes = {
        name: f"{array.dtype} [{', '.join(map(str, array.shape))}]"
        for name, array in (*leaves(sample.inputs), *leaves(sample.targets))
    }
    return ShownSample(sample, views, shapes)
