"""Write the summary of a finished run: what was trained, how long it took, and the final metrics.

Rank 0 writes it to ``summary.json`` in the run folder, and logs it as one line. Rates and seconds refer to the time
since the last start or resume, including evaluations and saves; steps, samples and tokens refer to the whole run.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from .callbacks.metrics_file import json_value
from .callbacks.throughput import memory_mib

if TYPE_CHECKING:
    from .loop import Trainer

log = logging.getLogger("trireme.trainer")
FILE = "summary.json"


class RunClock:
    """Measures a start of a run from its first step on."""

    def __init__(self) -> None:
        self._began, self._step, self._samples, self._tokens = time.monotonic(), 0, 0, 0

    def begin(self, trainer: Trainer) -> None:
        state = trainer.state
        self._began, self._step, self._tokens = time.monotonic(), state.step, state.tokens
        self._samples = state.samples - state.skipped

    def steps(self, trainer: Trainer) -> int:
        """Steps since ``begin``."""
        return trainer.state.step - self._step

    def summary(self, trainer: Trainer) -> dict[str, Any]:
        """The numbers of the run, by name. Metrics are those of the last lines."""
        state, seconds = trainer.state, max(time.monotonic() - self._began, 1e-9)
        unit = trainer.corpus.unit
        found = {
            "step": state.step,
            "max_steps": state.max_steps,
            "epoch": state.epoch,
            "samples": state.samples,
            unit: state.tokens,
            "seconds": round(seconds, 3),
            "steps_per_second": self.steps(trainer) / seconds,
            "samples_per_second": (state.samples - state.skipped - self._samples) / seconds,
            f"{unit}_per_second": (state.tokens - self._tokens) / seconds,
            "total_flops": trainer.total_flops,
            "memory_mib": round(memory_mib(trainer.mesh.device), 1),
            "ranks": trainer.mesh.world_size,
            "plan": trainer.recipe.plan.name,
            "best_metric": state.best_metric,
            "best_step": state.best_step,
        }
        last = {name: value for name, value in trainer.metrics.items() if name == "loss" or name.startswith("eval_")}
        return {name: value for name, value in (found | last).items() if value is not None}


def write_summary(trainer: Trainer) -> None:
    """Write and log the summary, on rank 0, unless this start of the run had nothing left to train. A full disk costs
    the file only."""
    if not trainer.mesh.is_main or not trainer.run_clock.steps(trainer):
        return
    summary = trainer.run_clock.summary(trainer)
    try:
        (trainer.run_dir / FILE).write_text(json.dumps(json_value(summary), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        log.warning("%s was not written: %s", FILE, error.strerror or error)
    unit = trainer.corpus.unit
    log.info(
        "%d steps in all, %s here at %.3g samples/s and %.3g %s/s, %.0f MiB",
        summary["step"],
        timedelta(seconds=round(summary["seconds"])),
        summary["samples_per_second"],
        summary[f"{unit}_per_second"],
        unit,
        summary["memory_mib"],
    )
