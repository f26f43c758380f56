"""Evaluate a model on data sets, all ranks together: compute metrics and, where asked, generate texts and collect a
record of each sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..parallel.micro_batch import MicroBatch
from ..parallel.strategy import Strategy
from .collective import on_main
from .generation import GenerationConfig
from .preference_passes import LookAhead
from .records import AT_ONCE, Records
from .sum_check import SumCheck
from .tasks.task import Sums, Task
from .text_writer import TextWriter


@dataclass
class Evaluation:
    """Evaluates sets of samples; all ranks call it together."""

    strategy: Strategy
    task: Task
    tokenizer: Any
    seed: int
    generation: GenerationConfig | None = None
    """How texts are written; None writes none."""

    def __post_init__(self) -> None:
        self._round, self._records = 0, None
        self.ahead = LookAhead(self.strategy, self.task)
        self._loss_check = SumCheck(self.task, "evaluate")
        parts = self.strategy, self.task, self.tokenizer, self.seed
        self._writer = TextWriter(*parts, self.generation) if self.generation else None

    def run(self, batches: Iterable[MicroBatch], records: Records | None = None) -> dict[str, float]:
        """Metrics of the samples in ``batches``, equal on all ranks.

        Args:
            batches: equally many on every data rank.
            records: takes a record of every sample; None keeps none, unless the task scores them.
        """
        return self._measured([("", 1.0, batches)], records)[0]

    def run_mixed(
        self, sources: Mapping[str, tuple[float, Iterable[MicroBatch]]], records: Records | None = None
    ) -> dict[str, float]:
        """Metrics of several sources together, and of each as ``<metric>/<source>``.

        Args:
            sources: by name, the factor by which the sums of a source count, and its batches.
            records: see ``run``.
        """
        metrics, apart = self._measured([(name, *each) for name, each in sources.items()], records)
        return metrics | {f"{name}/{source}": value for source, of in apart.items() for name, value in of.items()}

    def _measured(
        self, parts: Iterable[tuple[str, float, Iterable[MicroBatch]]], records: Records | None
    ) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
        """Metrics of the weighted sums of all parts (name, factor, batches), and those of each part by name."""
        scored = self.task.scores_records
        kept = self._records = records or (Records(self.strategy.mesh) if scored else None)
        totals: dict[str, Any] = {}
        apart: dict[str, dict[str, float]] = {}
        for part, factor, batches in parts:
            sums = self.strategy.evaluate(self._counted(batches), self._sums)
            if part:
                apart[part] = self.task.metrics(sums)
            for name, value in sums.items():
                totals[name] = totals.get(name, 0) + value * factor
            if kept is not None:
                kept.gather()
        self._loss_check.refuse_mean(self.strategy.mesh)
        metrics, self._records = self.task.metrics(totals), None
        if kept is not None:
            if scored:
                metrics |= self._scored(kept)
            if records is None:
                kept.close()
        return metrics, apart

    def _scored(self, records: Records) -> dict[str, float]:
        """Metrics that rank 0 computes of all records."""
        found: dict[str, float] = {}
        on_main(self.strategy.mesh, lambda: found.update(self.task.record_metrics(iter(records))))
        return self.strategy.mesh.broadcast_object(found)  # type: ignore[return-value]

    def _counted(self, batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        """``batches``, between which the ranks send their records: all ranks ask for a batch at the same time."""
        for self._round, micro in enumerate(batches):
            if self._records is not None and self._round and self._round % AT_ONCE == 0:
                self._records.gather()
            yield micro

    def _sums(self, outputs: Any, micro: MicroBatch) -> Sums:
        self._loss_check.look(outputs, micro)
        sums = self.task.evaluate(outputs, micro.targets)
        parts = self.task.records(outputs, micro.targets) if self._records is not None else {}
        if self._writer and self._writer.due(self._round, micro.rows):
            scores, texts = self._writer(micro)
            sums, parts = {**sums, **scores}, {**parts, **texts}
        if self._records is not None:
            self._records.add(micro.samples, parts, micro.per_sample)
        return sums
