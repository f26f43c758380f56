"""``trireme cancel``: end a job without losing what it has trained since its last checkpoint."""

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
"""Seconds between looks at the queue."""
SAVING = 600
"""Seconds that ranks get to save."""


def number_of(target: str) -> str:
    """The job of a run folder, or the number itself.

    Raises:
        UserError: it is neither.
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
    """End a job: those of its tasks that run are told to save and leave, and are waited for; with ``now`` not.

    Args:
        target: run folder or number of a job.
        seconds: how long to wait before it is ended all the same.

    Raises:
        UserError: there is no such job, or it is over, or not trireme's.
    """
    number = number_of(target)
    going = [job for job in jobs_of(number) if job.goes_on]
    if not going:
        raise UserError(Problem("JOB", "is over, or was never there", "see: trireme jobs", number))
    if not now and not all(job.is_ours for job in going):
        fix = f"end it with: scancel {number} (or --now)"
        raise UserError(Problem("JOB", "was not submitted by trireme, so nobody passes the signal on", fix, number))
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
    print(f"told {', '.join(names)} to save and leave; waiting (Ctrl-C waits no longer)", flush=True)
    deadline = time.monotonic() + seconds
    try:
        while left := _still_going(names):
            if time.monotonic() > deadline:
                print(f"not gone after {seconds:.0f} s: ended without waiting for a save", file=sys.stderr)
                _scancel(*left)
                return
            time.sleep(POLL)
    except KeyboardInterrupt:
        print("\nnot waiting; it leaves by itself once it has saved")
        return
    print("gone; the same `trireme launch` goes on from what is saved")


def _still_going(names: list[str]) -> list[str]:
    """All of them while the controller does not answer."""
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
