"""One evaluation: metrics of a set under any plan, texts that the model writes, and records of the samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ..errors import Problem, UserError
from ..models.loss import IGNORE
from ..parallel.micro_batch import MicroBatch
from ..parallel.strategy import Strategy
from .collective import on_main
from .generation import GenerationConfig
from .records import AT_ONCE, Records
from .tasks.task import Sums, Task
from .tasks.text_scores import text_sums

if TYPE_CHECKING:
    from torch import Tensor


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
        self._round, self._records, self._metric_records = 0, None, False
        if self.generation is None:
            return
        if not self.strategy.generates or not hasattr(self.strategy.module, "generate") or self.tokenizer is None:
            plan = self.strategy.plan.name
            why = "asks for texts, which this model cannot write"
            fix = "leave the part generation out"
            if not self.strategy.generates:
                why, fix = f"asks for texts, which plan {plan} cannot write", f"{fix}, or choose a plan without stages"
            raise UserError(Problem("generation", why, fix))

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
        sums = self.task.evaluate(outputs, micro.targets)
        parts = self.task.records(outputs, micro.targets) if self._records is not None else {}
        if self._writes(micro):
            written = self._write(micro)
            wanted = [self._text(row) for row in micro.targets["labels"]]
            real = [row for row, index in enumerate(micro.samples.tolist()) if index >= 0]
            pairs = [written[row] for row in real], [wanted[row] for row in real]
            assert self.generation is not None
            sums = {**sums, **text_sums(self.generation.scores, *pairs)}
            parts = {**parts, "written": written, "wanted": wanted}
        if self._records is not None:
            self._records.add(micro.samples, parts)
        return sums

    def _writes(self, micro: MicroBatch) -> bool:
        """Whether this round writes texts; equal on all ranks, which must generate together."""
        if self.generation is None:
            return False
        first = self._round * self.strategy.mesh.data_size * micro.rows
        return self.generation.samples is None or first < self.generation.samples

    def _write(self, micro: MicroBatch) -> list[str]:
        """A text for each sample."""
        assert self.generation is not None
        device = self.strategy.mesh.device
        prompt = self.task.prompt(micro.inputs, micro.targets)
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
            torch.manual_seed(_seed(self.seed, micro.samples))
            tokens = self.strategy.generate(
                **prompt, **self.generation.arguments(), use_cache=True, pad_token_id=self._padding()
            )
        begun = 1 if self.strategy.module.config.is_encoder_decoder else prompt["input_ids"].shape[1]
        return self.tokenizer.batch_decode(tokens[:, begun:], skip_special_tokens=True)

    def _text(self, labels: Tensor) -> str:
        return self.tokenizer.decode(labels[labels != IGNORE], skip_special_tokens=True)

    def _padding(self) -> int:
        known = (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id, 0)
        return next(token for token in known if token is not None)


def _seed(seed: int, samples: Tensor) -> int:
    """Seed of a micro-batch's draws. Micro-batches hold the same samples under every plan."""
    key = f"{seed}/texts/{samples.tolist()}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1
