"""Give a run the samples of prepared documents: blocks of tokens, single documents, or several documents packed into
one sequence. They are read by index from memory-mapped files.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import Problem, UserError
from ...parallel.micro_batch import MicroBatch
from ..component import Component
from ..settings import TrainerConfig
from .corpus import CorpusByIndex
from .corpus_stats import Stats, cut_line
from .data_config import HELD_OUT, TRAIN, DataConfig
from .further_sets import further_tokens
from .lanes import LaneBlocks, Lanes, evaluation_lanes, too_few_blocks
from .length_order import LengthOrder
from .own_order import OwnOrder
from .packed_rows import BinnedDocuments, SeparateBlocks
from .report.set_facts import SetFacts, lengths_between, spread
from .sample_order import EpochOrder
from .token_files import Column, DocumentBlocks, PackedBlocks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from ..tasks.task import Task

log = logging.getLogger("trireme.data")
TokenSamples = PackedBlocks | DocumentBlocks | BinnedDocuments


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
        self.train_size, self.length = len(self.train), config.block_size
        self.order = EpochOrder(len(self.train), seed, config.shuffle, config.separates)
        if config.order:
            batch = settings.global_batch_size
            self.order = OwnOrder(config.order, len(self.train), seed, batch, counts_on=bool(config.separates))
        if isinstance(self.train, BinnedDocuments):
            self.attended = self.train.bins.attended
        if config.group_by_length and isinstance(self.train, DocumentBlocks):
            lengths = np.minimum(lengths_between(self.train.ends.parts), config.block_size)
            self.order = LengthOrder(lengths, seed, config.shuffle, settings.global_batch_size)
        if config.packing == "lanes":
            self._take_lanes()
        for line in filter(None, self._left_out()):
            log.info("%s", line)
        for name in config.eval_sets:  # so that a source that is not usable is refused before training
            self.eval_set(name)

    def _take_lanes(self) -> None:
        count = self.global_batch_size
        if len(self.train) < count:
            raise UserError(too_few_blocks(len(self.train), count, self.config.block_size))
        self.order = self.lanes = Lanes(count, len(self.train) // count)
        self.train_size = self.lanes.size
        self.batcher = replace(self.batcher, marked=self.lanes.marked)

    def _samples(self, folder: Path, split: str) -> TokenSamples:
        config, tokens = self.config, Column(str(folder / f"{split}.arrow"))
        if config.packing == "lanes":
            return LaneBlocks(tokens, config.block_size)
        if config.packing is True:
            return PackedBlocks(tokens, config.block_size)
        ends = Column(str(folder / f"{split}_ends.arrow"))
        if config.packing == "bins":
            return BinnedDocuments(tokens, ends, config.block_size, config.overflow, self.seed, config.shuffle)
        kind = SeparateBlocks if config.packing else DocumentBlocks
        return kind(tokens, ends, config.block_size)

    def prints(self) -> dict[str, Any]:
        counts = {"train documents": self.stats.train_documents, "held-out documents": self.stats.held_out_documents}
        content = {"documents": self.stats.documents_digest, "tokens": self.stats.tokens_digest}
        return {**super().prints(), **content, "counts": counts}

    def _left_out(self) -> Iterator[str]:
        """Lines on text that is in no sample."""
        if line := self.stats.left_out():
            yield line
        size, stats = self.config.block_size, self.stats
        if isinstance(self.train, BinnedDocuments) and isinstance(self.held_out, BinnedDocuments):
            stats.train_tokens_cut = self.train.pieces.lost
            yield from self.train.lines("train")
            yield self.held_out.pieces.line("held-out", self.config.overflow)
        elif isinstance(self.train, DocumentBlocks) and isinstance(self.held_out, DocumentBlocks):
            cut = self.train.beyond()
            stats.train_tokens_cut = cut[1]
            yield cut_line("train", cut, (len(self.train), stats.train_tokens or 0), size)
            yield cut_line("held-out", self.held_out.beyond(), (len(self.held_out), stats.held_out_tokens or 0), size)
        else:
            taken = self.lanes.size * size if self.lanes else (stats.train_tokens or 0) // size * size
            rest = stats.train_tokens_cut = (stats.train_tokens or 0) - taken
            held_out = (stats.held_out_tokens or 0) % size
            if rest or held_out:
                what = "whole lanes" if self.lanes else "block"
                yield f"the last {rest} train tokens and {held_out} held-out tokens fill no {what} and are left out"

    def _check_sizes(self) -> None:
        problems = []
        for name, samples, tokens in (
            ("train", self.train, self.stats.train_tokens),
            ("held-out", self.held_out, self.stats.held_out_tokens),
        ):
            if tokens and not len(samples):
                if self.config.packing == "bins":
                    why = f"drops all documents of the {name} split, which are longer than a row"
                    problems.append(Problem("data.overflow", why, "set cut or split", self.config.overflow))
                    continue
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

    def eval_set(self, name: str) -> TokenSamples:
        if name not in self._sets:
            self._sets[name] = self._samples(further_tokens(self.config, name, self.tokenizer), name)
        return self._sets[name]

    def eval_batches(
        self, limit: int | None, data_rank: int = 0, data_size: int = 1, name: str = HELD_OUT
    ) -> Iterator[MicroBatch]:
        if self.lanes is None:
            return super().eval_batches(limit, data_rank, data_size, name)
        return evaluation_lanes(
            self.eval_set(name),
            self.collator,
            lanes=self.lanes.count,
            limit=limit,
            micro_batch_size=self.eval_micro_batch_size,
            data_rank=data_rank,
            data_size=data_size,
        )

    def describe(self, name: str) -> SetFacts:
        data, size = self.train if name == TRAIN else self.eval_set(name), self.config.block_size
        lengths = lengths_between(Column(f"{data.tokens.path.removesuffix('.arrow')}_ends.arrow").parts)
        facts = SetFacts(name, {"documents": len(lengths), "tokens": len(data.tokens)})
        if isinstance(data, BinnedDocuments):
            data.describe(facts)
        elif self.config.packing:
            facts.sizes[f"blocks of {size} tokens"] = len(data)
            if rest := len(data.tokens) % size:
                facts.notes.append(f"the last {rest} tokens fill no block and are left out")
        limit = None if self.config.packing else size
        facts.spreads += spread("tokens of a document", lengths, limit=limit)
        return facts

    def shown(self, index: int, name: str = HELD_OUT) -> dict[str, Any]:
        return {"text": self.tokenizer.decode(self.eval_set(name)[index]["input_ids"])}
