"""Compute and log the metrics of each logged training step, such as loss, learning rate and throughput."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..parallel.strategy import StepLoss, StepResult
from .cadence import due, last_step
from .callbacks.line_text import refuse_no_numbers, training_parts

if TYPE_CHECKING:
    from .loop import Trainer


class TrainingLines:
    """Writes the training lines of a run."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.once: dict[str, Any] = {}
        """Values that only the next line holds."""

    def write(self, loss: StepLoss, result: StepResult) -> None:
        """Write the training line of this step. The loss is summed over ranks here and nowhere else, so steps that
        are not logged need no message for it."""
        trainer = self.trainer
        line = self._line(loss, result)
        trainer.metrics.update(line)
        trainer.note(training_parts(line, trainer.mesh.device), line)
        trainer.history.lines.append(line)
        trainer.emit("on_log", line)

    def _line(self, loss: StepLoss, result: StepResult) -> dict[str, Any]:
        trainer, state, unit = self.trainer, self.trainer.state, self.trainer.corpus.unit
        mean, norm = trainer.strategy.global_loss(loss), result.grad_norm.item()
        trainer.finiteness.look(state.step, mean)
        elapsed = trainer.clock.elapsed(state)
        trainer.clock.restart(state)
        line = {
            "step": state.step,
            "epoch": state.epoch,
            "loss": mean,
            **trainer.source_losses.metrics(trainer.mesh),
            **trainer.step_metrics.metrics(),
            "grad_norm": norm,
            "lr": result.lr,
            unit: state.tokens,
            f"{unit}_per_second": elapsed.tokens / elapsed.seconds,
        }
        if result.skipped:
            line["skipped"] = True
        line.update(self.once)
        self.once = {}
        line.update(trainer.extra_metrics)
        refuse_no_numbers(trainer.extra_metrics)
        return line

    def due_next(self) -> bool:
        """Whether the coming step is one that the recipe logs, as ``callbacks.flow`` decides after it."""
        settings, state = self.trainer.settings, self.trainer.state
        batch, last = settings.global_batch_size, min(state.stop_at or state.max_steps, last_step(state, settings))
        then = replace(state, step=state.step + 1, samples=state.samples + batch)
        return then.step == 1 or due(settings.log_every, then, batch) or then.step >= last
