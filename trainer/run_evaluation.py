"""Evaluate the model of a run on its evaluation sets, during or after training, and write its predictions for a set to
a file.

The averaged weights are evaluated if the run keeps them (``ema``), unless ``ema.evaluate=false``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from ..parallel.micro_batch import MicroBatch
from .callbacks.line_text import evaluation_parts
from .collective import on_main
from .evaluation import Evaluation
from .prediction_rows import write_predictions, writing_all
from .records import Records
from .set_metrics import set_metrics

if TYPE_CHECKING:
    from .loop import Trainer


class RunEvaluation:
    """Evaluates the model in training, and writes evaluation lines."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        recipe = trainer.recipe
        self.evaluation = Evaluation(trainer.strategy, trainer.task, trainer.tokenizer, recipe.seed, recipe.generation)
        self.at = -1
        """Step of the last evaluation; -1 before the first."""
        self.batch = 0
        """Number of the current evaluation batch; 0 outside of evaluations."""

    @property
    def is_of_this_step(self) -> bool:
        """Whether the weights of this step were evaluated."""
        return self.at == self.trainer.state.step

    def evaluate(self) -> dict[str, float]:
        """Compute metrics on held-out data, equal on all ranks, and write an evaluation line."""
        trainer = self.trainer
        self.at, began = trainer.state.step, time.monotonic()
        with self._inference():
            metrics = self._metrics()
        line: dict[str, Any] = {"step": trainer.state.step, **metrics}
        if trainer.averaged:
            line["averaged"] = True  # the metrics are those of the averaged weights
        trainer.metrics.update(metrics)
        trainer.note(evaluation_parts(line), line)
        trainer.history.lines.append(line)
        trainer.emit("on_evaluate", line)
        trainer.emit("on_log", line)
        trainer.leaving.limit.evaluation_took(time.monotonic() - began)
        return metrics

    def predict(self, out: str, on: str, limit: int | None) -> dict[str, float]:
        """Write the model's prediction for each sample of a set into a file, and return metrics of the set; a
        collective call.

        Args:
            out: a file that ends in ``.jsonl`` or ``.parquet``; an existing one is replaced.
            on: ``held_out``, a name in ``data.eval_sets``, or ``test``.
            limit: samples, from the first on; None takes all.
        """
        trainer, recipe = self.trainer, self.trainer.recipe
        limit = recipe.trainer.eval_samples if recipe.data.streaming and limit is None else limit
        parts = trainer.strategy, trainer.task, trainer.tokenizer, recipe.seed
        evaluation = Evaluation(*parts, writing_all(recipe.generation, trainer.task))
        records = Records(trainer.mesh)
        with self._inference():
            metrics = set_metrics(evaluation, trainer.corpus, on, limit, records, self._counted)
        on_main(trainer.mesh, lambda: write_predictions(out, trainer.task, trainer.corpus, records, on))
        records.close()
        trainer.emit("on_predict", metrics)
        return metrics

    @contextmanager
    def _inference(self) -> Iterator[None]:
        """Context in which the model evaluates, with averaged weights if the run keeps and uses them."""
        trainer = self.trainer
        trainer.store.wait_for_copies()  # before averages are swapped into the weights that are being copied
        averaged = trainer.ema.in_place() if trainer.ema and trainer.averaged else nullcontext()
        trainer.strategy.set_training(False)
        with averaged:
            yield
        trainer.strategy.set_training(True)
        self.batch = 0

    def _metrics(self) -> dict[str, float]:
        """Metrics of every set that training evaluates, by the names of an evaluation line."""
        corpus, limit = self.trainer.corpus, self.trainer.settings.eval_samples
        found = {}
        for name in corpus.eval_sets:
            found |= set_metrics(self.evaluation, corpus, name, limit, counted=self._counted)
        return found

    def _counted(self, batches: Iterable[MicroBatch]) -> Iterator[MicroBatch]:
        for batch in batches:
            self.batch += 1
            self.trainer.emit("on_prediction_step")
            yield batch
