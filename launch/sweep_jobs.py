"""Run the jobs of a sweep (``--multirun``), record the metric and ending of each, and print a table at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import Problem, UserError
from ..trainer.callbacks.metrics_file import FILE_NAME, read_metrics
from ..trainer.checkpoint.layout import RECIPE
from .composed import Composed
from .error_report import DIVERGED, FAILED, INTERRUPTED, SAVED, USER_ERROR, Diverged, LeftEarly
from .listing import show_table
from .slurm.job_queue import progress
from .slurm.job_record import read_record

ENDINGS = {
    0: "done",
    FAILED: "failed",
    USER_ERROR: "refused",
    DIVERGED: "diverged",
    SAVED: "left early, saved",
    INTERRUPTED: "interrupted",
}


@dataclass
class Job:
    """One combination of a sweep: its run folder, metric and exit code."""

    folder: Path
    metric: str
    mode: str
    code: int = 0
    value: float | None = None

    @property
    def judged(self) -> bool:
        return self.code == 0 and self.value is not None and math.isfinite(self.value)

    def better_than(self, other: Job) -> bool:
        assert self.value is not None and other.value is not None
        return self.value < other.value if self.mode == "min" else self.value > other.value


@dataclass
class Jobs:
    """The jobs of a sweep that were started so far."""

    started: list[Job] = field(default_factory=list)

    def run(self, composed: Composed, train: Callable[[], None]) -> float | None:
        """Call ``train`` and record how it ends. A job that diverges does not end the sweep.

        Returns:
            The objective for a sweeper: ``checkpoint.metric``, else the last training loss; the worst possible value
            for a job that diverged.
        """
        checkpoint: dict[str, Any] = composed.raw.get("checkpoint") or {}
        job = Job(
            Path(composed.raw["run"]["dir"]), checkpoint.get("metric", "eval_loss"), checkpoint.get("mode", "min")
        )
        self.started.append(job)
        try:
            train()
        except Diverged:
            job.code = DIVERGED
        except BaseException as error:
            job.code = _code(error)
            raise
        _read_value(job)
        if job.code == DIVERGED or (job.value is not None and not math.isfinite(job.value)):
            return math.inf if job.mode == "min" else -math.inf
        return job.value

    def show(self) -> None:
        """Print the table, then the job with the best value."""
        if not self.started:
            return
        best: Job | None = None
        for job in filter(lambda job: job.judged, self.started):
            best = job if best is None or job.better_than(best) else best
        show_table(("job", "metric", "value", "end", "folder"), [_row(job, job is best) for job in self.started])
        _show_best(best)

    def raise_diverged(self) -> None:
        """Report divergence after the last job.

        Raises:
            Diverged: at least one job has diverged.
        """
        if any(job.code == DIVERGED for job in self.started):
            raise Diverged


def show_sweep(folder: Path) -> None:
    """Print the table of a sweep from its run folders, also while its jobs run elsewhere.

    Raises:
        UserError: ``folder`` holds no run folders.
    """
    record = read_record(folder)
    runs = [Path(run) for run in record.runs] if record and record.runs else _runs_in(folder)
    if not runs:
        fix = "name the folder that holds the run folders of a sweep (run.dir, by default runs/NAME_sweep)"
        why = "holds no run folders" if folder.is_dir() else "there is no such folder"
        raise UserError(Problem("SWEEP", why, fix, str(folder)))
    found, best = [], None
    for run in runs:
        job = Job(run, *_metric_of(run))
        _read_value(job)
        found.append(job)
        if job.judged:
            best = job if best is None or job.better_than(best) else best
    rows = [(*_row(job, job is best)[:3], progress(job.folder) or "no line yet", str(job.folder)) for job in found]
    show_table(("job", "metric", "value", "step", "folder"), rows)
    _show_best(best)


def _runs_in(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob(f"*/{RECIPE}"))


def _metric_of(run: Path) -> tuple[str, str]:
    """Name and mode of a run's ``checkpoint.metric``; the usual ones before it has written its recipe."""
    try:
        checkpoint = yaml.safe_load((run / RECIPE).read_text()).get("checkpoint") or {}
    except (OSError, yaml.YAMLError, AttributeError):
        checkpoint = {}
    return checkpoint.get("metric", "eval_loss"), checkpoint.get("mode", "min")


def _show_best(best: Job | None) -> None:
    if best is not None:
        print(f"best: {best.folder.name} with {best.metric} {best.value:.4f} ({best.mode} is better)")


def refuse_run_folder(folder: Path) -> None:
    """Refuse a folder for a sweep that holds the files of a run.

    Raises:
        UserError: ``folder`` is a run folder.
    """
    if (folder / FILE_NAME).exists() or (folder / "checkpoints").exists():
        fix = "name another run.dir for the sweep; its jobs get folders in there"
        raise UserError(Problem("run.dir", "holds a run, and the jobs of a sweep would lie in it", fix, str(folder)))


def _read_value(job: Job) -> None:
    try:
        lines = read_metrics(job.folder / FILE_NAME)
    except OSError:  # a recipe without the callback metrics
        return
    if not any(job.metric in line for line in lines):
        job.metric, job.mode = "loss", "min"
    job.value = next((float(line[job.metric]) for line in reversed(lines) if job.metric in line), None)


def _row(job: Job, best: bool) -> Sequence[str]:
    value = "" if job.value is None else f"{job.value:.4f}{' *' if best else ''}"
    return job.folder.name, job.metric, value, ENDINGS.get(job.code, f"exit code {job.code}"), str(job.folder)


def _code(error: BaseException) -> int:
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code
    kinds = ((UserError, USER_ERROR), (LeftEarly, SAVED), (KeyboardInterrupt, INTERRUPTED))
    return next((code for kind, code in kinds if isinstance(error, kind)), FAILED)
