"""Read SLURM's queue: list trireme's jobs with their runs and latest steps (``trireme jobs``), find jobs by number, and
refuse a run folder that a job still uses.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ...errors import Problem, UserError
from ..listing import show_table
from .job_record import read_record
from .job_script import NAME
from .slurm_commands import Refused, slurm

GOING = ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "RESIZING", "SIGNALING",
         "STAGE_OUT", "STOPPED", "SPECIAL_EXIT", "REQUEUE_HOLD", "REQUEUE_FED")  # fmt: skip
"""States of jobs that run or may run again."""
FORMAT = "%i|%F|%K|%T|%M|%D|%r|%o"
"""Columns for squeue: job, number of the array, task of the array, state, elapsed time, nodes, reason, script."""

HEADER = ("job", "state", "time", "nodes", "step", "run", "why it waits")


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array."""

    id: str
    array: str
    """Number of the array that the job belongs to; its own number if there is none."""
    task: str
    """Number in the array; ``N/A`` if there is none."""
    state: str
    elapsed: str
    nodes: str
    reason: str
    """Why the job waits."""
    script: Path

    @property
    def goes_on(self) -> bool:
        return self.state in GOING

    @property
    def is_ours(self) -> bool:
        return self.script.name == NAME

    def has_number(self, number: str) -> bool:
        """Whether ``number`` names this job: ``12`` (also the number of its array) or ``12_3``."""
        whole, _, task = number.partition("_")
        return self.array == whole and task in ("", self.task)

    @property
    def run(self) -> Path:
        """The run folder of the job."""
        record = read_record(self.script.parent) if self.task.isdigit() else None
        if record is None or record.job != self.array:  # an older job of the same sweep folder
            return self.script.parent
        return Path(record.runs[int(self.task)]) if record.runs else self.script.parent


def show_jobs() -> None:
    """Print a table of this user's trireme jobs; SLURM shows ended jobs for some minutes."""
    found = own_jobs()
    if not found:
        print("no jobs")
        return
    rows = []
    for job in found:
        why = job.reason if job.state == "PENDING" else ""
        rows.append((job.id, job.state.lower(), job.elapsed, job.nodes, progress(job.run), str(job.run), why))
    show_table(HEADER, rows)


def jobs(*options: str) -> list[Job]:
    """Jobs that squeue shows with these options, each task of an array by itself; jobs that just ended included.

    Raises:
        UserError: SLURM is not installed or does not answer.
    """
    try:
        lines = slurm("squeue", "--noheader", "--array", "--states=all", f"--format={FORMAT}", *options).splitlines()
    except Refused as error:
        if "invalid job id" in str(error).lower():
            return []
        raise
    return list(_parsed(lines))


def own_jobs() -> list[Job]:
    """Jobs of this user that trireme has submitted."""
    return [job for job in jobs(f"--user={os.getuid()}") if job.is_ours]


def jobs_of(number: str) -> list[Job]:
    """The job ``12``, all tasks of the array ``12``, or its task ``12_3``; empty once SLURM has forgotten it."""
    return [job for job in jobs(f"--jobs={number.partition('_')[0]}") if job.has_number(number)]


def refuse_going(folder: Path) -> None:
    """Refuse a run folder that a job still uses: two jobs in one folder would overwrite each other's files.

    Raises:
        UserError: a job of the folder runs or waits, including one whose submission got no answer from sbatch.
    """
    record, script = read_record(folder), folder / NAME
    found = jobs_of(record.job) if record else []
    found += [job for job in own_jobs() if job.script.resolve() == script.resolve()] if script.exists() else []
    going = [job for job in found if job.goes_on]
    if going:
        number, state = going[0].id, going[0].state
        fix = f"wait for it (trireme logs {folder} -f), end it (trireme cancel {number}), or choose another run.dir"
        raise UserError(Problem("run.dir", f"belongs to job {number}, which is {state}", fix, str(folder)))


def progress(run: Path) -> str:
    """``120/1000``: the last logged step of all steps; empty before the first."""
    from ...trainer.callbacks.metrics_file import FILE_NAME, read_metrics

    file = run / FILE_NAME
    steps = [line["step"] for line in read_metrics(file)] if file.exists() else []
    if not steps:
        return ""
    try:
        most = yaml.safe_load((run / "recipe.yaml").read_text())["trainer"]["max_steps"]
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        most = None
    return f"{max(steps)}/{most}" if most else str(max(steps))


def _parsed(lines: list[str]) -> Iterator[Job]:
    for line in lines:
        number, array, task, state, elapsed, nodes, reason, script = line.split("|", 7)
        yield Job(number, array, task, state, elapsed, nodes, reason, Path(script))
