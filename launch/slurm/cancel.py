"""``trireme cancel``: end a SLURM job after its running tasks have saved a checkpoint, or with ``--now`` at once."""

from __future__ import annotations

import re
import sys
import time
from pathlib import Path

from ...errors import Problem, UserError
from .job_queue import Job, jobs_of
from .job_record import read_record
from .slurm_commands import NoAnswer, Refused, slurm

POLL = 1.0
"""Seconds between two queries of the queue."""
SAVING = 600
"""Seconds that ranks get to save, unless ``--wait`` says otherwise."""


def number_of(target: str) -> str:
    """Number of the job of a run folder; a number is returned as it is.

    Raises:
        UserError: ``target`` is neither a run folder with a job nor a number.
    """
    if re.fullmatch(r"\d+(_\d+)?", target) and not Path(target).is_dir():
        return target
    record = read_record(Path(target))
    if record is None:
        known = Path(target).is_dir()
        why = (
            "has not been submitted to SLURM from here" if known else "is neither a run folder nor the number of a job"
        )
        raise UserError(Problem("RUN", why, "see: trireme jobs", target))
    return record.job


def cancel(target: str, now: bool, seconds: float = SAVING) -> None:
    """End a job. Running tasks are told to save and are waited for; waiting tasks are cancelled.

    Args:
        target: run folder or number of a job.
        now: end running tasks at once, without saving.
        seconds: how long to wait for the save before the job is ended without it.

    Raises:
        UserError: there is no such job, or it is over, or not trireme's.
    """
    number = number_of(target)
    going = [job for job in jobs_of(number) if job.goes_on]
    if not going:
        raise UserError(Problem("JOB", "is over, or does not exist", "see: trireme jobs", number))
    if not now and not all(job.is_ours for job in going):
        fix = f"end it with: scancel {number} (or --now)"
        raise UserError(Problem("JOB", "was not submitted by trireme, so its script passes no signal on", fix, number))
    running = [job for job in going if job.state == "RUNNING" and not now]
    waiting = [job.id for job in going if job not in running]
    if waiting:
        _scancel(*waiting)
        print(f"cancelled {', '.join(waiting)}")
    if running:
        _save_first(running, seconds)


def _save_first(running: list[Job], seconds: float) -> None:
    names = [job.id for job in running]
    _scancel("--batch", "--signal=USR2", *names)
    print(f"told {', '.join(names)} to save and leave; waiting (Ctrl-C stops waiting)", flush=True)
    deadline = time.monotonic() + seconds
    try:
        while left := _still_going(names):
            if time.monotonic() > deadline:
                print(f"still running after {seconds:.0f} s: ended without a save", file=sys.stderr)
                _scancel(*left)
                return
            time.sleep(POLL)
    except KeyboardInterrupt:
        print("\nno longer waiting; the job ends by itself when it has saved")
        return
    print("ended; the same `trireme launch` resumes from what was saved")


def _still_going(names: list[str]) -> list[str]:
    """Names of jobs that have not ended; all of them if the controller does not answer."""
    wholes = sorted({name.partition("_")[0] for name in names})
    try:
        return [job.id for whole in wholes for job in jobs_of(whole) if job.id in names and job.goes_on]
    except NoAnswer:
        return names


def _scancel(*arguments: str) -> None:
    try:
        slurm("scancel", *arguments)
    except Refused as error:
        raise UserError(Problem("scancel", f"refused: {error}", "see: trireme jobs")) from None
