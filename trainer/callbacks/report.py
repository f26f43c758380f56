"""Report callback: write ``report.html``, a page about the run, to the run folder after evaluations and at the end.

The page is made from files in the run folder. Two of them are written by this callback only. ``journal.jsonl`` records
starts, ends, checkpoints and rollbacks, and the memory, communication and pipeline timeline of one measured step.
``shown_samples.json`` holds the first samples as the model gets them. The second step after each start is measured;
this does not change the results of training.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.layout import step_of
from ..journal import BACK, ENDED, MEASURED, SAVED, STARTED, Journal, ending
from ..run_report.run_files import SAMPLES
from .callback import Callback, Metrics

if TYPE_CHECKING:
    from ..loop import Trainer
    from ..measured_step import MeasuredStep
    from ..trainer_state import Control, TrainerState

log = logging.getLogger(__name__)
PAGE = "report.html"
REFRESH_SECONDS = 30.0
"""How often an open page of a run that goes on loads itself again."""
LONGEST, LARGEST = 3000, 384
"""Characters of a text of a sample that are kept, and the side of its images."""


class Report(Callback):
    """Writes the page on the main rank.

    Args:
        every_seconds: shortest time in seconds between two pages during the run; one is written after evaluations, in
            about a tenth of a second.
        samples: samples of the first step that are shown with their labels; 0 shows none.
        measure: measure memory by part, bytes sent and the pipeline in time in one step.
    """

    keeps_journal = True

    def __init__(self, every_seconds: float = 60.0, samples: int = 3, measure: bool = True) -> None:
        if every_seconds < 0:
            raise ValueError(f"every_seconds={every_seconds} is negative; use 0 or more seconds")
        if samples < 0:
            raise ValueError(f"samples={samples} is negative; use 0 to show none")
        self.every_seconds, self.samples, self.measure = every_seconds, samples, measure
        self._trainer: Trainer | None = None
        self._journal: Journal | None = None  # stays None on the other ranks
        self._step: MeasuredStep | None = None
        self._measured_at = self._left = -1
        self._written_at = time.monotonic()

    def on_train_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        again, self._trainer = self._trainer is not None, trainer
        if again:  # after a rollback
            self._note(BACK, state.step, left=self._left)
            return
        if trainer.mesh.is_main:
            self._journal = Journal(trainer.run_dir)
            self._note(STARTED, state.step, **_about(trainer))
        if self.measure:
            from ..measured_step import MeasuredStep

            self._step, self._measured_at = MeasuredStep(trainer), state.step + 2

    def on_step_begin(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self._step is not None and state.step + 1 == self._measured_at:
            self._step.begin()

    def on_pre_optimizer_step(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self._step is not None and state.step + 1 == self._measured_at:
            self._step.gradients()

    def on_step_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self._step is not None and state.step == self._measured_at:
            self._note_measured(trainer, state)
        if trainer.mesh.is_main and self.samples and state.step == 1:
            self._keep_samples(trainer)

    def on_save(self, trainer: Trainer, state: TrainerState, control: Control, path: Path) -> None:
        self._note(SAVED, step_of(path), name=path.name)  # written in the background, it is some steps old

    def on_log(self, trainer: Trainer, state: TrainerState, control: Control, metrics: Metrics) -> None:
        evaluated = any(name.startswith("eval_") for name in metrics)
        if self._journal and evaluated and time.monotonic() - self._written_at >= self.every_seconds:
            self._write(trainer, running=True)

    def on_train_end(self, trainer: Trainer, state: TrainerState, control: Control) -> None:
        if self._journal:  # early, so that the last log lines can name it; ``close`` writes it again, with the summary
            self._write(trainer, running=True)

    def close(self) -> None:
        trainer, error = self._trainer, sys.exception()
        if self._step is not None:
            self._step.abandon()
        if trainer is None:
            return
        if trainer.control.rollback and error is None:  # closed to begin again
            self._left = trainer.state.step
            return
        self._trainer = None
        how, reason = ending(trainer, error)
        self._note(ENDED, trainer.state.step, how=how, reason=reason)
        if self._journal:
            self._write(trainer, running=False)

    def _note(self, event: str, step: int, **facts: Any) -> None:
        if self._journal:
            self._journal.note(event, step, **facts)

    def _note_measured(self, trainer: Trainer, state: TrainerState) -> None:
        from ..measured_step import joined
        from ..predicted_memory import predicted_memory

        assert self._step is not None
        ranks, self._step = self._step.end(), None
        if self._journal:
            planned = None
            try:
                planned = predicted_memory(trainer)
            except Exception:  # a model of an unusual shape; the page shows what was measured
                log.debug("memory and traffic were not planned", exc_info=True)
            self._note(MEASURED, state.step, planned=planned, **joined(ranks, trainer.mesh.device.type))

    def _keep_samples(self, trainer: Trainer) -> None:
        """Write the first samples of this step as the model got them."""
        try:
            shown = {"step": trainer.state.step, "samples": _views(trainer, self.samples)}
            text = json.dumps(shown, ensure_ascii=False)
            (trainer.run_dir / SAMPLES).write_text(text, encoding="utf-8", errors="replace")
        except OSError as error:
            log.warning("samples are not kept for the report: %s", error.strerror or error)
        except Exception:  # views of a user's own may fail, and must not end the run
            log.warning("samples are not kept for the report, since they cannot be shown", exc_info=True)

    def _write(self, trainer: Trainer, running: bool) -> None:
        from ..run_report.page import Report as Page
        from ..run_report.page import write_report
        from ..run_report.run_files import read_run

        try:
            run = read_run(trainer.run_dir, running, may_be_empty=True)
            write_report(Page([run], run.name, REFRESH_SECONDS if running else None), trainer.run_dir / PAGE)
        except OSError as error:
            log.warning("%s cannot be written: %s", PAGE, error.strerror or error)
        except Exception:
            log.warning("%s is not written", PAGE, exc_info=True)
        self._written_at = time.monotonic()


def _about(trainer: Trainer) -> dict[str, Any]:
    """Facts about this start of the run, for the journal."""
    from ..machine_facts import machine, versions
    from ..restart import attempt

    mesh, recipe = trainer.mesh, trainer.recipe
    return {
        "plan": recipe.plan.name,
        "ranks": mesh.world_size,
        "device": mesh.device.type,
        "precision": recipe.plan.precision,
        "max_steps": trainer.state.max_steps,
        "attempt": attempt(),
        "process": os.getpid(),
        "references": trainer.reference_lines,
        "machine": machine(mesh.device),
        "versions": versions(),
    }


def _views(trainer: Trainer, count: int) -> list[dict[str, Any]]:
    from ..data.report.format_data_report import heading
    from ..data.report.view_html import stored_view
    from ..data_report import collated_rows, shown_sample

    batch, corpus = trainer.batch, trainer.corpus
    assert batch is not None
    indices = iter(batch.samples)
    rows = (row for micro in batch.micro_batches for row in collated_rows(corpus, micro, indices))
    found = []
    for row in islice(rows, count):
        shown = shown_sample(corpus, row)
        views = {
            name: stored_view(view, LARGEST if hasattr(view, "pixels") else LONGEST)
            for name, view in shown.views.items()
        }
        found.append({"title": heading(shown, "train"), "views": views, "shapes": shown.shapes})
    return found
