"""Give a run the samples of a data set of rows: the task's ``Samples`` object makes a sample when a row is read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Dataset

from ...errors import Problem, UserError
from ...models.facts import Facts
from ..component import Component
from ..component_errors import component_errors
from ..settings import TrainerConfig
from .base_collator import Sample, is_ours
from .cache import cache_root
from .content_stamp import hash_json
from .corpus import CorpusByIndex
from .data_config import HELD_OUT, TRAIN, DataConfig
from .document_source import SOURCE
from .further_sets import further_rows, source_of
from .length_order import LengthOrder
from .open_samples import NotUsable, checked_sample, checked_views, usable
from .own_order import OwnOrder
from .packed_rows import Binned
from .prepare_rows import PreparedRows
from .report.set_facts import SetFacts, label_facts, measured_rows
from .report.views import Collated
from .row_tokens import measured_samples, packed_samples
from .sample_order import EpochOrder
from .samples import Samples

if TYPE_CHECKING:
    from ..tasks.task import Task

log = logging.getLogger("trireme.data")


class RowSamples(Dataset[Sample]):
    """Samples of rows by index."""

    def __init__(self, rows: Any, samples: Samples, key: str = SOURCE, name: str = TRAIN) -> None:
        """
        Args:
            key: where the source of the rows stands in the recipe.
            name: of the set.
        """
        made = samples.made(rows, name, key)
        self.rows, self.samples, self.key, self.name = made.rows, samples, key, name
        self.notes, self.lengths, self.digest = made.notes, made.lengths, made.digest
        self.files = samples.media_files(rows) if made.files is None else made.files
        self.beside: dict[str, np.ndarray] = {}
        """Further values of each sample by name, such as log-probabilities under a reference; set before it is read."""
        self._checked = is_ours(samples)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Sample:
        return self._sample(index, self.rows[index])

    def __getitems__(self, indices: Sequence[int]) -> list[Sample]:
        return [self._sample(index, self.rows[index]) for index in indices]

    def _sample(self, index: int, row: dict[str, Any]) -> Sample:
        try:
            with component_errors("task", self.samples, "sample"):
                beside = {name: values[index] for name, values in self.beside.items()}
                return {**self._made(row), **beside, "index": index}
        except NotUsable as error:
            place = f"sample {index + 1} of the set {self.name}"
            why = f"gives a row that is not usable: {error} ({place}: {self.samples.show(row)})"
            raise UserError(Problem(self.key, why, "correct the row, or leave it out")) from error

    def _made(self, row: dict[str, Any]) -> Sample:
        if self._checked:
            return usable(self.samples, row)
        self._checked = True
        return checked_sample(self.samples, row)


class RowsCorpus(CorpusByIndex):
    """Prepared rows, read by index."""

    samples: Samples  # type: ignore[assignment]  # rows always have them

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        settings: TrainerConfig,
        collator: Component | None,
        task: Task,
        samples: Samples,
        rows: PreparedRows,
        model: Any,
        key: str = SOURCE,
    ) -> None:
        self.samples, self.stats, self._print = samples, rows.stats, rows.print
        super().__init__(config, seed, settings, collator, task, samples.processor, model)
        parts = ((rows.train, TRAIN), (rows.held_out, HELD_OUT))
        self.rows, self.held_out = (RowSamples(part, samples, key, name) for part, name in parts)
        # Only rows to train on share a row of tokens: evaluations and predictions are of single samples.
        self.train: Any = self.rows
        print_ = hash_json([rows.print, self.rows.files.times]) if self.rows.files.times else rows.print
        if config.packing == "bins":
            own = samples.packed(self.rows, seed, config.shuffle)
            self.train = packed_samples(config, seed, self.rows, print_) if own is None else own
            self._say_packed(self.train)
        self.stats.train_blocks, self.stats.held_out_blocks = len(self.train), len(self.held_out)
        self._sets = {HELD_OUT: self.held_out}
        self.has_held_out, self.train_size = bool(self.eval_sets), len(self.train)
        self.order = EpochOrder(len(self.train), seed, config.shuffle, config.separates)
        if config.order:
            batch, raw = settings.global_batch_size, self.rows.rows
            self.order = OwnOrder(config.order, len(self.train), seed, batch, raw, config.separates)
        if config.group_by_length:
            lengths = measured_samples(config, self.rows, print_)
            self.order = LengthOrder(lengths, seed, config.shuffle, settings.global_batch_size)
        self.unit, self.length = samples.unit, samples.length
        for line in (self.stats.left_out(), *self.stats.unread_columns):
            if line:
                log.info("%s", line)
        for part, name in ((self.rows, TRAIN), (self.held_out, HELD_OUT)):
            for note in part.notes:
                log.info("%s: %s", name, note)
        for name in config.eval_sets:  # so that a source that is not usable is refused before training
            self.eval_set(name)

    @property
    def facts(self) -> Facts:
        return self.samples.facts

    def prints(self) -> dict[str, Any]:
        labels = list(self.samples.facts.labels)
        content = {"documents": self.stats.documents_digest, **({"labels": labels} if labels else {})}
        if self.rows.digest is not None:
            content["tokens"] = hash_json([self.rows.digest, self.held_out.digest])
        cache = cache_root(self.config.cache_dir)
        if any(media := [part.files.content(cache) for part in (self.rows, self.held_out)]):
            content["media"] = hash_json(media)
        return {**super().prints(), **content}

    def eval_set(self, name: str) -> RowSamples:
        if name not in self._sets:
            rows = further_rows(self.config, name, self.samples.columns)
            self._sets[name] = RowSamples(rows, self.samples, source_of(self.config, name)[0], name)
        return self._sets[name]

    def row_sets(self) -> dict[str, RowSamples]:
        """The rows of all sets that training reads, by name."""
        return {TRAIN: self.rows, HELD_OUT: self.held_out} | {
            name: self.eval_set(name) for name in self.config.eval_sets
        }

    def describe(self, name: str) -> SetFacts:
        part = self.rows if name == TRAIN else self.eval_set(name)
        rows = part.rows
        labels, values = label_facts(rows, self.facts, self.samples.label_column)
        spreads = measured_rows(rows, self.samples)
        facts = SetFacts(name, {"rows": len(rows)}, spreads=[*spreads, *values], labels=labels, notes=list(part.notes))
        if name == TRAIN and isinstance(self.train, Binned):
            self.train.describe(facts)
        return facts

    def _say_packed(self, train: Binned) -> None:
        self.stats.train_tokens_cut, self.attended = train.pieces.lost, train.bins.attended
        for line in train.lines(TRAIN):
            log.info("%s", line)

    def views(self, sample: Collated) -> Mapping[str, Any]:
        return checked_views(self.samples, sample)

    def shown(self, index: int, name: str = HELD_OUT) -> dict[str, Any]:
        row = self.eval_set(name).rows[index]
        plain = {column: value for column, value in row.items() if isinstance(value, str | int | float)}
        return {**self.samples.show(row), **plain}
