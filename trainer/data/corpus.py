"""The corpus of a run, which gives the trainer its batches: the base class, and the corpus of prepared documents.

Training batches are iterated from a given number of samples on. A prepared (indexed) corpus needs nothing else to
resume; a streamed one also needs the JSON that its batches returned as ``state()``.
"""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import Problem, UserError
from ...models.facts import Facts
from ...models.vocabulary import Vocabulary
from ...parallel.micro_batch import MicroBatch, StepBatch
from ..component import Component
from ..settings import TrainerConfig
from .base_collator import Collator
from .corpus_stats import Stats, cut_line
from .data_config import HELD_OUT, TRAIN, DataConfig
from .further_sets import further_tokens
from .loader import Batcher, evaluation_batches, step_batches
from .open_collator import open_collator
from .report.sample_views import sample_views
from .report.set_facts import SetFacts, lengths_between, spread
from .report.views import Collated
from .sample_order import EpochOrder
from .token_files import Column, DocumentBlocks, PackedBlocks
from .tokenizer import tokens_like, versions

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..tasks.task import Task
    from .mixture import Mixture

log = logging.getLogger("trireme.data")


class TrainBatches(Iterator[StepBatch], ABC):
    """One data rank's share of each step, in order."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Position after the last returned batch, as JSON, equal on all ranks; a resume passes it back."""

    def close(self) -> None:
        """End what fetches ahead."""


class Corpus(ABC):
    """Train and held-out samples, their tokenizer, and batches of them."""

    train_size: int | None
    """Samples of one epoch; None for a stream, whose length is unknown."""
    has_held_out: bool
    """Whether ``eval_batches`` gives any batches."""
    stats: Stats
    """Statistics of documents and tokens."""
    unit = "tokens"
    """Name of what the length of a sample counts."""
    mixture: Mixture | None = None
    """This corpus, if it mixes several sources."""

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
            processor: what makes inputs of raw data: a tokenizer, an image processor, several in one.
            model: the model's transformers configuration, for collators that need it.
        """
        self.config, self.seed, self.task, self.processor = config, seed, task, processor
        self.global_batch_size, self.micro_batch_size = settings.global_batch_size, settings.micro_batch_size
        given = {
            "block_size": config.block_size,
            "micro_batch_size": settings.micro_batch_size,
            "seed": seed,
            "processor": processor,
            "tokenizer": self.tokenizer,
            "model": model,
            "facts": self.facts,
        }
        if self.tokenizer is not None:
            given["pad_token_id"] = pad_token_id(self.tokenizer)
        self.collator: Collator = open_collator(
            collator or {"_target_": task.collator}, given, next_tokens=task.head == "causal_lm"
        )
        task.configure(processor, self.facts)
        self.batcher = Batcher(self.collator, task.count)

    @property
    def tokenizer(self) -> Any:
        """The tokenizer in the processor; None if there is none."""
        if hasattr(self.processor, "backend_tokenizer"):
            return self.processor
        return getattr(self.processor, "tokenizer", None)

    @property
    def facts(self) -> Facts:
        """What the data tells the model that is built for it."""
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
        """The sample of a set at ``index`` as people read it."""
        return {}

    def describe(self, name: str) -> SetFacts:
        """What is known of a set before any training: ``train``, or a name as for ``eval_batches``."""
        return SetFacts(name)

    def views(self, sample: Collated) -> Mapping[str, Any]:
        """What is shown of a collated sample, by name."""
        return sample_views(sample, self.processor, self.tokenizer, self.facts)


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Size and special tokens of a tokenizer."""
    return Vocabulary(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def pad_token_id(tokenizer: Any) -> int:
    """Token id for padding. Padding is masked and has no labels, so any id will do if the tokenizer has none."""
    known = (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(token, int))
    return next(known, 0)


class CorpusByIndex(Corpus):
    """A corpus whose samples are read by index, so that a position needs no state."""

    train: Any
    held_out: Any
    """Data sets of samples, with a length."""
    order: EpochOrder

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
            micro_batch_size=self.micro_batch_size,
            data_rank=data_rank,
            data_size=data_size,
        )


class IndexedCorpus(CorpusByIndex):
    """Prepared documents in memory-mapped files, read by index."""

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        settings: TrainerConfig,
        collator: Component | None,
        task: Task,
        tokenizer: PreTrainedTokenizerFast,
        folder: Path,
        model: Any = None,
    ) -> None:
        super().__init__(config, seed, settings, collator, task, tokenizer, model)
        self.stats = Stats(**json.loads((folder / "stats.json").read_text()))
        self.train, self.held_out = self._samples(folder, "train"), self._samples(folder, "held_out")
        self._check_sizes()
        self.stats.train_blocks, self.stats.held_out_blocks = len(self.train), len(self.held_out)
        self._sets = {HELD_OUT: self.held_out}
        self.has_held_out = bool(self.eval_sets)
        self.train_size = len(self.train)
        self.order = EpochOrder(len(self.train), seed, config.shuffle)
        for line in filter(None, self._left_out()):
            log.info("%s", line)
        for name in config.eval_sets:  # so that a source that is not usable is refused before training
            self.eval_set(name)

    def _samples(self, folder: Path, split: str) -> PackedBlocks | DocumentBlocks:
        tokens = Column(str(folder / f"{split}.arrow"))
        if self.config.packing:
            return PackedBlocks(tokens, self.config.block_size)
        return DocumentBlocks(tokens, Column(str(folder / f"{split}_ends.arrow")), self.config.block_size)

    def prints(self) -> dict[str, Any]:
        counts = {"train documents": self.stats.train_documents, "held-out documents": self.stats.held_out_documents}
        content = {"documents": self.stats.documents_digest, "tokens": self.stats.tokens_digest}
        return {**super().prints(), **content, "counts": counts}

    def _left_out(self) -> Iterator[str]:
        """Lines on text that is in no sample."""
        if line := self.stats.left_out():
            yield line
        size, stats = self.config.block_size, self.stats
        if isinstance(self.train, DocumentBlocks) and isinstance(self.held_out, DocumentBlocks):
            cut = self.train.beyond()
            stats.train_tokens_cut = cut[1]
            yield cut_line("train", cut, (len(self.train), stats.train_tokens or 0), size)
            yield cut_line("held-out", self.held_out.beyond(), (len(self.held_out), stats.held_out_tokens or 0), size)
        else:
            rest = stats.train_tokens_cut = (stats.train_tokens or 0) % size
            held_out = (stats.held_out_tokens or 0) % size
            if rest or held_out:
                yield f"the last {rest} train tokens and {held_out} held-out tokens fill no block and are left out"

    def _check_sizes(self) -> None:
        problems = []
        for name, samples, tokens in (
            ("train", self.train, self.stats.train_tokens),
            ("held-out", self.held_out, self.stats.held_out_tokens),
        ):
            if tokens and not len(samples):
                fit = 1 << (tokens.bit_length() - 1)
                other = "" if name == "train" else ", raise data.held_out, name a data.eval_source"
                problems.append(
                    Problem(
                        "data.block_size",
                        f"the {name} split has only {tokens} tokens, fewer than one block",
                        f"set data.block_size={fit} or less{other}, or give more text",
                        self.config.block_size,
                    )
                )
        if problems:
            raise UserError(*problems)

    def eval_set(self, name: str) -> PackedBlocks | DocumentBlocks:
        if name not in self._sets:
            self._sets[name] = self._samples(further_tokens(self.config, name, self.tokenizer), name)
        return self._sets[name]

    def describe(self, name: str) -> SetFacts:
        data, size = self.train if name == TRAIN else self.eval_set(name), self.config.block_size
        lengths = lengths_between(Column(f"{data.tokens.path.removesuffix('.arrow')}_ends.arrow").parts)
        facts = SetFacts(name, {"documents": len(lengths), "tokens": len(data.tokens)})
        if self.config.packing:
            facts.sizes[f"blocks of {size} tokens"] = len(data)
            if rest := len(data.tokens) % size:
                facts.notes.append(f"the last {rest} tokens fill no block and are left out")
        limit = None if self.config.packing else size
        facts.spreads += spread("tokens of a document", lengths, limit=limit)
        return facts

    def shown(self, index: int, name: str = HELD_OUT) -> dict[str, Any]:
        return {"text": self.tokenizer.decode(self.eval_set(name)[index]["input_ids"])}


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
            del batch  # else the error holds this frame, and the frame the error

    def state(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        """Workers end with the loader's iterator, of which this holds the only reference."""
        self.batches = iter(())
