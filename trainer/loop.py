"""The training loop (``Trainer``), which is the same for all parallelism plans (DDP, ZeRO, FSDP ...).

``Strategy`` hides the differences between the plans.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..parallel.micro_batch import StepBatch
from ..parallel.strategy import StepLoss, StepResult
from .checkpoint.layout import metric_of, step_folder
from .component import locate
from .component_errors import component_errors
from .data.data_config import HELD_OUT
from .data.token_checks import refuse_unknown_tokens
from .end_pass import end_pass
from .finiteness import Finiteness
from .interruption import Leaving
from .log_files import SHOWN
from .log_history import LogHistory
from .run_evaluation import RunEvaluation
from .saving import Saving
from .shared_requests import agree
from .source_losses import SourceLosses
from .step_metrics import StepMetrics
from .step_seed import seed_step
from .sum_check import SumCheck, check_own_step
from .summary import RunClock
from .tasks.task import own_steps
from .train_batches import RunBatches
from .training_clock import TrainingClock
from .training_line import TrainingLines
from .untrained import refuse_untrained

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ..configs.schema import RecipeConfig
    from ..parallel.mesh import Mesh
    from ..parallel.strategy import Strategy
    from .base_identity import Base
    from .callback_list import CallbackList
    from .checkpoint.store import Checkpoints
    from .data.corpus import Corpus
    from .ema import Ema
    from .preference_reference import Reference
    from .schedules import Schedule
    from .tasks.task import Task
    from .trainer_state import Control, TrainerState

log = logging.getLogger("trireme.trainer")
NOTHING_LEARNT = (
    "the gradient of the first step is zero, so nothing is learnt from it: the loss does not depend on the weights, or "
    "no label is left (see the task, the collator, and what masks labels)"
)


@dataclass
class TrainResult:
    """Result of a run that has ended."""

    run_dir: Path
    step: int
    metrics: dict[str, Any] = field(default_factory=dict)
    """The last training line joined with the last evaluation."""
    interrupted: str = ""
    """Reason of an early stop (a signal, the wall-clock limit) with everything saved; empty if there was none."""
    pruned: str = ""
    """Reason for which a search has ended the run early; empty if none did."""
    not_finite: str = ""
    """Description of a loss or weights that are not finite at the end; empty if they are."""


@dataclass
class Trainer:
    """All parts of one run, and its loop; built by ``trainer.build``."""

    recipe: RecipeConfig
    run_dir: Path
    mesh: Mesh
    strategy: Strategy
    blueprint: PreTrainedModel
    """The whole model on the meta device: its configuration and sizes."""
    task: Task
    corpus: Corpus
    tokenizer: Any
    schedule: Schedule
    state: TrainerState
    control: Control
    go_back: Callable[[Trainer], Path]
    """Restores the state of the newest complete checkpoint and returns its path (``rollback.roll_back``)."""
    callbacks: CallbackList
    store: Checkpoints
    ema: Ema | None = None
    flops_per_token: float | None = None
    """Floating-point operations per token; None if they are not known, as for images and audio clips."""
    reference_lines: dict[str, float] = field(default_factory=dict)
    """Losses to compare with, by name, such as the unigram entropy."""
    base: Base | None = None
    """The base model of adapters; None for a model without adapters."""
    reference: Reference | None = None
    """The weights that preferences are compared with; None if the task compares with none."""
    load_best: Callable[[Trainer], None] = lambda trainer: None
    """Takes the weights of the best checkpoint at the end (``load_best.load_best``); nothing unless the recipe asks."""
    before_first_step: Callable[[], None] = lambda: None
    """Called before the first step, after all checks have passed."""

    def __post_init__(self) -> None:
        self.settings, self.checkpoints = self.recipe.trainer, self.recipe.checkpoint
        self.ended_with: Path | None = None
        """The checkpoint whose weights the run has ended with, if they are not simply the last ones."""
        self.extra_metrics: dict[str, Any] = {}
        self.metrics: dict[str, Any] = {}
        self.batches, self.saving, self.clock = RunBatches(self), Saving(self), TrainingClock()
        self.leaving = Leaving(self.settings.max_time, speaks=self.mesh.is_main)
        self.batch: StepBatch | None = None
        self.loss: StepLoss | None = None
        self.result: StepResult | None = None
        self.history, self.run_clock = LogHistory(), RunClock()
        self.evaluations, self.lines = RunEvaluation(self), TrainingLines(self)
        self.finiteness = Finiteness(self.mesh, self.strategy)
        self.loss_function = SumCheck(self.task)
        self.source_losses = SourceLosses(self.task, self.corpus.mixture, self.mesh.device)
        self.step_metrics = StepMetrics(self.task, self.strategy)
        self.optimizer = locate(self.recipe.optimizer["_target_"])

    def fit(self) -> TrainResult:
        """Train to ``stop_at``, until a callback asks to stop, or until a signal or the time limit asks to leave."""
        with self.leaving.signals.noted():
            self._begin()
            for batch in self.batches:
                if self.batch is None:
                    self._check_first_batch(batch)
                self._begin_step()
                loss = self.forward_backward(batch)
                if self.batch is None:  # the first batch
                    self.loss_function.refuse_mean(self.mesh)
                    refuse_untrained(self.strategy, self.mesh, self.recipe.model)
                self.emit("on_pre_optimizer_step")
                self.store.wait_for_copies()
                with component_errors("optimizer", self.optimizer, "step", only_its_file=True):
                    result = self.strategy.optimizer_step(self.settings.max_grad_norm, self.schedule(self.state.step))
                self.emit("on_optimizer_step")
                if self.ema and not result.skipped:
                    self.ema.update()
                self._end_step(batch, loss, result)
                agree(self)
                if self.control.rollback:
                    self.roll_back()
                    continue
                if self.control.end_pass:
                    end_pass(self)
                if self.control.log:
                    self.lines.write(loss, result)
                if self.control.evaluate:
                    self.evaluate()
                if self.control.save:
                    self.save()
                if self.control.stop:
                    log.info("stopping at step %d: %s", self.state.step, self.control.reason)
                    break
                self.control.clear()
            self._finish()
        reason, control = self.control.reason, self.control
        pruned, interrupted = (reason if flag else "" for flag in (control.prune, control.interrupted))
        return TrainResult(self.run_dir, self.state.step, self.metrics, interrupted, pruned, self.not_finite())

    def evaluate(self) -> dict[str, float]:
        """Compute metrics on held-out data, equal on all ranks, and write an evaluation line."""
        with self.clock.paused():
            return self.evaluations.evaluate()

    def predict(self, out: Path | str, on: str = HELD_OUT, limit: int | None = None) -> dict[str, float]:
        """Write predictions of a set into a file during or after training (``RunEvaluation.predict``)."""
        with self.clock.paused():
            return self.evaluations.predict(str(out), on, limit)

    @property
    def evaluating(self) -> int:
        """Number of the current evaluation batch; 0 outside of evaluations."""
        return self.evaluations.batch

    @property
    def averaged(self) -> bool:
        """Whether evaluations use the averaged weights."""
        return self.ema is not None and self.ema.config.evaluate

    def save(self, wait: bool = False) -> None:
        """Write a checkpoint of this step (``Saving.save``)."""
        with self.clock.paused():
            self.saving.save(wait)

    def metric_of_this_step(self) -> float | None:
        """The value of ``checkpoint.metric`` if this step was evaluated, else None."""
        return self.metrics.get(self.checkpoints.metric) if self.evaluations.is_of_this_step else None

    def not_finite(self) -> str:
        """A description of values that are not finite after this step; empty if all are. A collective call."""
        self.finiteness.look(self.state.step)
        evaluated = self.metrics.get("eval_loss") if self.evaluations.is_of_this_step else None
        return self.finiteness.verdict(evaluated)

    def roll_back(self) -> None:
        """Go back to the newest complete checkpoint of this run, and train on with the next samples: samples consumed
        since then are not repeated in this pass. Callbacks restart from that step, but keep their counts.

        Raises:
            UserError: there is no checkpoint to go back to.
        """
        self.saving.end()
        metric = metric_of(self.go_back(self))
        self.metrics.pop(self.checkpoints.metric, None)
        self.metrics |= {} if metric is None else {self.checkpoints.metric: metric}
        self.control.clear()
        if not self.control.interrupted:  # a request to stop came from a step that is undone now
            self.control.stop, self.control.reason = False, ""
        self.evaluations.at = self.state.step
        self.batches.move()
        self.finiteness.begin()
        self.clock.restart(self.state)
        self.save()  # so that a resume does not repeat those samples

    def emit(self, event: str, *details: Any) -> None:
        """Call ``event`` of every callback, in the recipe's order."""
        self.callbacks.emit(self, event, *details)

    @property
    def total_flops(self) -> float | None:
        """Floating-point operations of the whole run so far, by the same estimate as ``mfu``; None if not known."""
        return None if self.flops_per_token is None else self.flops_per_token * self.state.tokens

    @property
    def best_checkpoint(self) -> Path | None:
        """The checkpoint with the best ``checkpoint.metric``, if it is known (callback ``best_model``) and kept."""
        best = self.state.best_step
        path = None if best is None else step_folder(self.store.root, best)
        return path if path is not None and path.is_dir() else None

    # -- parts of a step --------------------------------------------------------------------------------------

    def forward_backward(self, batch: StepBatch) -> StepLoss:
        """Loss and gradients of this rank's share of a step."""
        with self._own_model():
            if self.task.coupled:
                return self.strategy.forward_backward_coupled(batch, self.task)
            self.evaluations.evaluation.ahead.step(batch)
            loss = self.step_metrics.beside(self.source_losses.beside(self.loss_function))
            return self.strategy.forward_backward(batch, loss)

    def _own_model(self) -> AbstractContextManager:
        """Context that names the user's own model class in its exceptions."""
        model, kind = self.recipe.model, type(self.blueprint)
        if not model.own or kind.__module__.startswith("transformers."):
            return nullcontext()
        key = "model.family" if model.architecture is None else "model.architecture"
        return component_errors(key, kind, "forward", only_its_file=True)

    def _begin(self) -> None:
        # The step of the loaded checkpoint is saved already, and was evaluated if that was due.
        self.evaluations.at = self.saving.saved_at = self.state.step or -1
        cut = self.corpus.stats.train_tokens_cut
        if cut is not None and not self.state.step:
            self.lines.once = {"train_tokens_cut": cut}
        self.history.begin(self)
        self.run_clock.begin(self)
        self.strategy.after_micro_batch = lambda: self.emit("on_substep_end")
        self.emit("on_train_begin")
        self.before_first_step()
        if self.control.stop:
            log.info("nothing is trained: %s", self.control.reason)
        if self.settings.eval_on_start and self.state.step == 0 and not self.control.stop:
            self.evaluate()
        self.clock.restart(self.state)
        if self.state.evaluation_due:
            self.state.evaluation_due = False
            self.evaluate()
            self.save()  # again, now with the metric, and with the callbacks' state after it

    def _check_first_batch(self, batch: StepBatch) -> None:
        """Refuse unknown tokens in the first batch, and a task's own step that gives a mean; before noise is drawn."""
        refuse_unknown_tokens(batch, self.blueprint, self.recipe.collator, self.corpus.samples)
        if "step" in own_steps(self.task):
            check_own_step(self.task, self.strategy, batch)

    def _begin_step(self) -> None:
        seed_step(self.recipe.seed, self.state.step, self.mesh.data_rank, self.mesh.device)
        if self.strategy.noise is not None:
            self.strategy.noise.begin_step(self.recipe.seed, self.state.step)
        if self.source_losses.mixture is not None or self.task.step_metrics:
            due = self.lines.due_next()
            self.source_losses.begin_step(due)
            self.step_metrics.begin_step(due)
        size, batch = self.state.train_size, self.settings.global_batch_size
        if size and (self.state.samples == 0 or self.state.samples // size > (self.state.samples - batch) // size):
            self.emit("on_epoch_begin")
        self.emit("on_step_begin")

    def _end_step(self, batch: StepBatch, loss: StepLoss, result: StepResult) -> None:
        if self.batch is None and not result.skipped and result.grad_norm.item() == 0 and self.mesh.is_main:
            log.warning("%s", NOTHING_LEARNT)
        self.batch, self.loss, self.result = batch, loss, result
        passes = int(self.state.epoch or 0)
        self.state.step += 1
        self.state.samples += self.settings.global_batch_size
        self.state.tokens += loss.tokens
        self.finiteness.step_done(self.state.step, loss, result)
        self.emit("on_step_end")
        if int(self.state.epoch or 0) > passes:
            self.emit("on_epoch_end")

    def note(self, parts: list[str], metrics: Mapping[str, Any]) -> None:
        """Write a line of ``metrics`` into the log, independently of callbacks; ``parts`` are its words."""
        if self.mesh.is_main:
            shown = "  ".join([f"step {self.state.step}/{self.state.stop_at}", *parts])
            logging.getLogger(SHOWN).info("%s", shown, extra={"metrics": metrics})

    def _finish(self) -> None:
        if not (self.control.interrupted or self.control.prune):
            self._finish_training()
        self.saving.end()
        self.emit("on_train_end")
        self.strategy.end_noise()

    def _finish_training(self) -> None:
        left_early = (
            self.state.step == self.state.stop_at < self.state.max_steps
        )  # an early stop is no end of training, so the uninterrupted run would not evaluate here
        if (
            self.settings.eval_at_end
            and self.corpus.has_held_out
            and not left_early
            and not self.evaluations.is_of_this_step
        ):
            self.evaluate()
        if (self.checkpoints.at_end or self.control.save) and self.saving.saved_at != self.state.step:
            self.save(wait=True)
        if not left_early:
            self.load_best(self)
