"""A streamed corpus of texts: documents are tokenized during training, and an interrupted run resumes exactly.

The steps are: documents -> held-out filter -> tokenizer, 16 documents at a time -> blocks of tokens -> shuffling within
windows -> one global sequence of blocks, of which each data rank takes its part of every step. *Every rank reads and
tokenizes the whole stream.* So the order does not depend on the world size, and a resume may use another. The cost is
that each rank tokenizes all documents. Where this is too slow, prepare the documents beforehand
(``data.streaming=false``).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import Problem, UserError
from ...parallel.micro_batch import MicroBatch
from ..component import Component
from ..settings import TrainerConfig
from .cache import cache_root
from .content_stamp import hash_json
from .corpus import Corpus, TrainBatches
from .corpus_stats import Stats, unigram_entropy
from .data_config import HELD_OUT, TRAIN, DataConfig
from .document_source import SOURCE, DocumentSource, sources
from .held_out import is_held_out, text_hash
from .loader import evaluation_batches
from .packed_rows import MemoryRows
from .report.set_facts import SetFacts, spread
from .stream_blocks import ShuffledBlocks, StreamBatches, next_rows
from .stream_reader import BlockReader, Keep
from .tokenizer import check_borders, encode_documents, load_or_train

if TYPE_CHECKING:
    from ..tasks.task import Task

log = logging.getLogger("trireme.data")
_NO_LIMIT = Problem(
    "trainer.eval_samples", "an evaluation of a stream needs an end", "set a number such as trainer.eval_samples=512"
)


class StreamingCorpus(Corpus):
    """A corpus whose documents are read during training."""

    train_size = None

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        settings: TrainerConfig,
        collator: Component | None,
        task: Task,
        model: Any = None,
        key: str = SOURCE,
        tokenizer: Any = None,
    ) -> None:
        """
        Args:
            key: where the source stands in the recipe.
            tokenizer: the tokenizer to use; None takes that of ``config``.
        """
        self.stats, self.length = Stats(), config.block_size
        self.has_held_out = bool(config.eval_source or config.held_out)
        # Without a separate evaluation source, documents are held out by the same rule as in a prepared corpus.
        self._share = 0.0 if config.eval_source else config.held_out
        evaluates = settings.eval_every or settings.eval_at_end or settings.eval_on_start
        if self.has_held_out and settings.eval_samples is None and evaluates:
            raise UserError(_NO_LIMIT)
        self._source, *others = sources(config.source, config.eval_source, streaming=True, key=key)
        self._eval_source = others[0] if others else None
        for note in (note for opened in (self._source, *others) for note in opened.notes()):
            log.info("%s", note)
        fingerprint = f"{self._source.fingerprint()} {self._share}"
        tokenizer = tokenizer or load_or_train(
            config.tokenizer,
            lambda: train_texts(self._source, self._share),
            fingerprint,
            str(cache_root(config.cache_dir)),
        )
        check_borders(tokenizer, *config.borders)
        super().__init__(config, seed, settings, collator, task, tokenizer, model)
        self._held_out, self._collected = MemoryRows([]), 0
        if self.has_held_out and settings.eval_samples:
            self._collect(settings.eval_samples)  # now, so that the unigram entropy is known from the start

    def prints(self) -> dict[str, Any]:
        sources = [self._source] + ([self._eval_source] if self._eval_source else [])
        return {**super().prints(), "documents": hash_json([source.content() for source in sources])}

    def _is_train(self, text: str) -> bool:
        return not is_held_out(text_hash(text), self._share)

    def _reader(self, source: DocumentSource, keep: Keep, position: dict[str, Any] | None = None) -> BlockReader:
        def tokenize(texts: list[str]) -> list[list[int]]:
            return encode_documents(self.tokenizer, texts, *self.config.borders)

        return BlockReader(source, tokenize, keep, self.config, position)

    def blocks(self, state: dict[str, Any], seed: int) -> ShuffledBlocks:
        """The endless samples of the stream from ``state`` on; an empty one is its beginning."""
        return ShuffledBlocks(
            lambda position: self._reader(self._source, self._is_train, position), self.config, seed, state
        )

    def train_batches(
        self, state: dict[str, Any], samples: int, steps: int, data_rank: int = 0, data_size: int = 1
    ) -> TrainBatches:
        state = {} if "sources" in state else state  # of a mixture
        blocks = self.blocks(state, self.seed)
        if samples and not state:
            log.info("no position of the stream is known: reading %d samples again", samples)
            deque(islice(blocks, samples), maxlen=0)
        return StreamBatches(
            blocks,
            self.batcher,
            first=samples,
            steps=steps,
            global_batch_size=self.global_batch_size,
            data_rank=data_rank,
            data_size=data_size,
        )

    def eval_batches(
        self, limit: int | None, data_rank: int = 0, data_size: int = 1, name: str = HELD_OUT
    ) -> Iterator[MicroBatch]:
        if name != HELD_OUT:
            fix = "set data.streaming=false"
            raise UserError(Problem("--on", "a stream has no set but the held-out one", fix, name))
        if not self.has_held_out:
            return iter(())
        return evaluation_batches(
            self.first_held_out(limit),
            self.collator,
            limit=limit,
            micro_batch_size=self.eval_micro_batch_size,
            data_rank=data_rank,
            data_size=data_size,
        )

    def describe(self, name: str) -> SetFacts:
        if name == TRAIN:
            return SetFacts(name, {"documents": None, "tokens": None}, notes=["a stream: its end is not known"])
        if not self._collected:
            return SetFacts(name, {"documents": None, "tokens": None}, notes=["read when it is first evaluated"])
        lengths = [len(row["input_ids"]) for row in self._held_out.rows]
        about = "the beginning of the stream's held-out documents, as long as trainer.eval_samples asks for"
        sizes: dict[str, int | None] = {"tokens": sum(lengths), "blocks": len(lengths)}
        return SetFacts(name, sizes, spreads=spread("tokens of a block", lengths), notes=[about])

    def first_held_out(self, limit: int | None) -> MemoryRows:
        """At least the first ``limit`` held-out samples, or all if there are fewer.

        Raises:
            UserError: there is no limit.
        """
        if limit is None:
            raise UserError(_NO_LIMIT)
        if limit > self._collected:
            self._collect(limit)
        return self._held_out

    def _collect(self, limit: int) -> None:
        """Read the first ``limit`` held-out blocks into memory; they are equal on all ranks and after a resume."""
        if self._eval_source:
            reader = self._reader(self._eval_source, lambda text: True)
        else:
            reader = self._reader(self._source, lambda text: not self._is_train(text))
        rows = next_rows(reader, self.config, limit, (self.seed, 0, 0))
        if not rows:
            raise UserError(
                Problem(
                    "data.held_out",
                    "the held-out documents of the stream are shorter than one block",
                    "raise data.held_out, name a data.eval_source, or set a smaller data.block_size",
                    self.config.held_out,
                )
            )
        blocks = [row["input_ids"] for row in rows]
        self._held_out, self._collected = MemoryRows(rows), limit
        self.stats.held_out_blocks = len(blocks)
        self.stats.held_out_tokens = sum(map(len, blocks))
        self.stats.unigram_entropy = unigram_entropy(np.bincount(np.concatenate(blocks)))
        log.info("collected %d held-out blocks of the stream", len(blocks))


def train_texts(source: DocumentSource, share: float) -> Iterator[str]:
    """Documents of a stream without the held-out ``share``."""
    return (text for text in source.rows(iter(source.stream())) if text and not is_held_out(text_hash(text), share))
