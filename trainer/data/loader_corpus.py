"""Give a user's own data loader (``data.loader``) the interface of ``Corpus``, so that a run can train on its samples.
The samples may be texts or any other data.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import Problem, UserError
from ...models.facts import Facts
from ...parallel.micro_batch import MicroBatch
from ..component import Component
from ..settings import TrainerConfig
from .cache import cache_root
from .check_tokenizer import lacks_tokenizer
from .content_stamp import hash_json
from .corpus import Corpus, IndexedBatches, TrainBatches
from .corpus_stats import Stats
from .data_config import HELD_OUT, TRAIN, DataConfig
from .loader import evaluation_batches, step_batches
from .loader_samples import HeldOutSamples, PositionedSamples, SamplesInOrder
from .own_loader import LOADER, open_loader
from .report.set_facts import SetFacts, component_text
from .stream_blocks import StreamBatches
from .text_values import vocabulary_of
from .tokenizer import load_tokenizer

if TYPE_CHECKING:
    from ..tasks.task import Task

log = logging.getLogger("trireme.data")
NO_END = Problem(
    "trainer.epochs",
    "counts passes, and data.loader does not say how many samples one has",
    "set its size, or trainer.max_steps and trainer.epochs=null",
)
NO_WORKERS = Problem(
    "data.num_workers",
    "is for loaders with sample(position): one with __iter__ is read in order, in the process of the rank",
    "set data.num_workers=0",
)


class LoaderCorpus(Corpus):
    """Samples that a loader gives by position or in order."""

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        settings: TrainerConfig,
        collator: Component | None,
        task: Task,
        weights: Path | None,
        model: Any = None,
    ) -> None:
        """
        Args:
            weights: folder of the model's weights, whose tokenizer is used unless the recipe names another.
        """
        assert config.loader is not None
        tokenizer = _tokenizer(config, weights)
        given = {
            "seed": seed,
            "block_size": config.block_size,
            "tokenizer": tokenizer,
            "model": model,
            "weights": weights,
            "config": config,
            "cache": cache_root(config.cache_dir),
        }
        self.samples = self.loader = open_loader(config.loader, given)
        self.by_position = callable(getattr(self.loader, "sample", None))
        self.train_size, self.stats = getattr(self.loader, "size", None), Stats()
        self.unit = getattr(self.loader, "unit", "tokens")
        self.length = getattr(self.loader, "length", None)
        if self.train_size is None and settings.max_steps is None:
            raise UserError(NO_END)
        if config.num_workers and not self.by_position:
            raise UserError(NO_WORKERS)
        processor = getattr(self.loader, "processor", None) or tokenizer
        super().__init__(config, seed, settings, collator, task, processor, model)
        self.held_out = HeldOutSamples(self.loader)
        self.has_held_out = bool(len(self.held_out))
        log.info(
            "loader %s: %s train samples, %d held-out samples",
            type(self.loader).__name__,
            "an unknown number of" if self.train_size is None else self.train_size,
            len(self.held_out),
        )

    @property
    def facts(self) -> Facts:
        own = getattr(self.loader, "facts", None)
        return own or (Facts() if self.tokenizer is None else Facts(vocabulary_of(self.tokenizer)))

    def prints(self) -> dict[str, Any]:
        return {**super().prints(), "documents": hash_json([str(self.loader.fingerprint())])}

    def train_batches(
        self, state: dict[str, Any], samples: int, steps: int, data_rank: int = 0, data_size: int = 1
    ) -> TrainBatches:
        ranks = {"data_rank": data_rank, "data_size": data_size}
        if self.by_position:
            found = step_batches(
                PositionedSamples(self.loader),
                self.batcher,
                _as_they_come,
                samples=samples,
                steps=steps,
                global_batch_size=self.global_batch_size,
                num_workers=self.config.num_workers,
                pin_memory=True,
                **ranks,
            )
            return IndexedBatches(found)
        stream = SamplesInOrder(self.loader, state, samples)
        if stream.read_again:
            log.info("data.loader has no state for this position: %d samples were read again", stream.read_again)
        return StreamBatches(
            stream, self.batcher, first=samples, steps=steps, global_batch_size=self.global_batch_size, **ranks
        )

    def eval_batches(
        self, limit: int | None, data_rank: int = 0, data_size: int = 1, name: str = HELD_OUT
    ) -> Iterator[MicroBatch]:
        if name != HELD_OUT:
            raise UserError(Problem("--on", "data.loader has no set but held_out", f"name {HELD_OUT}", name))
        return evaluation_batches(
            self.held_out,
            self.collator,
            limit=limit,
            micro_batch_size=self.eval_micro_batch_size,
            data_rank=data_rank,
            data_size=data_size,
        )

    def describe(self, name: str) -> SetFacts:
        size = self.train_size if name == TRAIN else len(self.held_out)
        return SetFacts(name, {"samples": size}, f"{LOADER}: {component_text(self.config.loader or {})}")


def _as_they_come(positions: np.ndarray) -> np.ndarray:
    """The order of a loader by position: its own."""
    return positions


def _tokenizer(config: DataConfig, weights: Path | None) -> Any:
    """The tokenizer that the recipe names, or that of the weights; None if there is none."""
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    if weights is None or lacks_tokenizer(weights, "model.weights", str(weights)):
        return None
    return load_tokenizer(str(weights), "model.weights")
