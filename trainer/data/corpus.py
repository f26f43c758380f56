"""Base classes of a run's corpus, the object that gives the trainer its batches.

Training batches begin after a given number of samples. A ``CorpusByIndex`` (prepared data) needs nothing else to
resume. A streamed corpus also needs the JSON state that its batches returned by ``state()``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ...models.facts import Facts
from ...models.forward_inputs import forward_inputs
from ...models.heads import HEADS
from ...parallel.micro_batch import MicroBatch, StepBatch
from ..component import Component
from ..settings import TrainerConfig
from .base_collator import Collator
from .corpus_stats import Stats
from .data_config import HELD_OUT, DataConfig
from .loader import Batcher, evaluation_batches, step_batches
from .open_collator import open_collator, usual_collator
from .report.sample_views import sample_views
from .report.set_facts import SetFacts
from .report.views import Collated
from .text_values import text_values, tokenizer_in, vocabulary_of
from .tokenizer import tokens_like, versions

if TYPE_CHECKING:
    from ..tasks.task import Task
    from .lanes import Lanes
    from .mixture import Mixture


class TrainBatches(Iterator[StepBatch], ABC):
    """One data rank's share of each step, in order."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Position after the last returned batch, as JSON, equal on all ranks; a resume passes it back."""

    def close(self) -> None:
        """Stop fetching ahead."""


class Corpus(ABC):
    """Train and held-out samples, their tokenizer, and batches of them."""

    train_size: int | None
    """Samples of one epoch; None for a stream, whose length is unknown."""
    has_held_out: bool
    """Whether ``eval_batches`` gives any batches."""
    stats: Stats
    """Statistics of documents and tokens."""
    unit = "tokens"
    """Unit in which the length of a sample is counted."""
    mixture: Mixture | None = None
    """This corpus, if it mixes several sources."""
    length: int | None = None
    """Greatest length of a sample, in ``unit``; None if it is not known."""
    attended: float | None = None
    """Length of a token's document as a mean over tokens, where documents in a row do not see each other."""
    samples: Any = None
    """The ``Samples`` that make samples of rows; None for texts."""
    lanes: Lanes | None = None
    """The lanes in which samples follow each other; None where they stand alone."""

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        settings: TrainerConfig,
        collator: Component | None,
        task: Task,
        processor: Any,
        model: Any = None,
    ) -> None:
        """
        Args:
            processor: object that makes model inputs from raw data: a tokenizer, an image processor, several in one.
            model: the model's transformers configuration, for collators that need it.
        """
        self.config, self.seed, self.task, self.processor = config, seed, task, processor
        self.global_batch_size, self.micro_batch_size = settings.global_batch_size, settings.micro_batch_size
        self.eval_micro_batch_size = settings.eval_micro_batch_size or settings.micro_batch_size
        given = {
            **text_values(config, self.tokenizer, self.facts.vocabulary),
            "micro_batch_size": settings.micro_batch_size,
            "seed": seed,
            "processor": processor,
            "model": model,
            # Importing the model's class takes a second or more, which few collators need.
            "inputs": partial(forward_inputs, model, str(task.head)) if model is not None else None,
            "facts": self.facts,
        }
        self.collator: Collator = open_collator(
            collator or {"_target_": usual_collator(task, model)}, given, HEADS[task.head], self.samples
        )
        task.configure(processor, self.facts)
        self.batcher = Batcher(self.collator, task.count)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in the processor; None if there is none."""
        return tokenizer_in(self.processor)

    @property
    def facts(self) -> Facts:
        """Properties of the data that the model is built for."""
        return Facts(vocabulary_of(self.tokenizer))

    def prints(self) -> dict[str, Any]:
        """Fingerprints that a resume compares: equal for equal documents and tokens, in whatever folder they lie."""
        fast = hasattr(self.tokenizer, "backend_tokenizer")
        like = {"tokenizer": tokens_like(self.tokenizer)} if fast else {}
        return {**like, "versions": versions()}

    @abstractmethod
    def train_batches(
        self, state: dict[str, Any], samples: int, steps: int, data_rank: int = 0, data_size: int = 1
    ) -> TrainBatches:
        """This data rank's share of the next ``steps`` steps after ``samples`` consumed ones (over all ranks);
        ``state`` is the value of ``TrainBatches.state`` there, from any number of data ranks and any batch size."""

    @property
    def eval_sets(self) -> list[str]:
        """Names of the sets that training evaluates."""
        return [HELD_OUT] if self.has_held_out else []

    @abstractmethod
    def eval_batches(
        self, limit: int | None, data_rank: int = 0, data_size: int = 1, name: str = HELD_OUT
    ) -> Iterator[MicroBatch]:
        """The first ``limit`` samples of a set (None means all; a stream needs a number), in the same number of
        micro-batches on every data rank; samples that only fill up a micro-batch have no targets there.

        Args:
            name: ``held_out``, a name in ``data.eval_sets``, or ``test``.
        """

    def shown(self, index: int, name: str = HELD_OUT) -> dict[str, Any]:
        """The sample of a set at ``index`` in readable form."""
        return {}

    def describe(self, name: str) -> SetFacts:
        """Facts about a set before any training: ``train``, or a name as for ``eval_batches``."""
        return SetFacts(name)

    def views(self, sample: Collated) -> Mapping[str, Any]:
        """Views of a collated sample for ``trireme data``, by name."""
        return sample_views(sample, self.processor, self.tokenizer, self.facts)


class CorpusByIndex(Corpus):
    """A corpus whose samples are read by index, so that a position needs no state."""

    train: Any
    held_out: Any
    """Data sets of samples, with a length."""
    order: Callable[[np.ndarray], np.ndarray]
    """Maps positions in the endless stream to indices of ``train``."""

    @abstractmethod
    def eval_set(self, name: str) -> Any:
        """The samples of a set by its name."""

    @property
    def eval_sets(self) -> list[str]:
        return [*([HELD_OUT] if len(self.held_out) else []), *self.config.eval_sets]

    def train_batches(
        self, state: dict[str, Any], samples: int, steps: int, data_rank: int = 0, data_size: int = 1
    ) -> TrainBatches:
        return IndexedBatches(
            step_batches(
                self.train,
                self.batcher,
                self.order,
                samples=samples,
                steps=steps,
                global_batch_size=self.global_batch_size,
                data_rank=data_rank,
                data_size=data_size,
                num_workers=self.config.num_workers,
                pin_memory=True,
            )
        )

    def eval_batches(
        self, limit: int | None, data_rank: int = 0, data_size: int = 1, name: str = HELD_OUT
    ) -> Iterator[MicroBatch]:
        return evaluation_batches(
            self.eval_set(name),
            self.collator,
            limit=limit,
            micro_batch_size=self.eval_micro_batch_size,
            data_rank=data_rank,
            data_size=data_size,
        )


class IndexedBatches(TrainBatches):
    """Batches without state, since their position follows from the number of consumed samples."""

    def __init__(self, batches: Iterator[StepBatch | Exception]) -> None:
        """``batches``: where one is an exception, it is raised in its turn (``loader.step_batches``)."""
        self.batches = batches

    def __next__(self) -> StepBatch:
        batch = next(self.batches)
        if not isinstance(batch, Exception):
            return batch
        try:
            raise batch
        finally:
            del batch  # else the error and this frame refer to each other

    def state(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Workers end with the loader's iterator, of which this holds the only reference."""
        self.batches = iter(())
