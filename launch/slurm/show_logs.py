"""``trireme logs RUN``: what a run has said, of its job or of one of its ranks, to the end or as it goes on."""

from __future__ import annotations

import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ...errors import Problem, UserError
from .job_queue import jobs_of
from .job_record import read_record
from .slurm_commands import NoAnswer

POLL = 0.5
"""Seconds between looks at the file."""
ASK = 10.0
"""Seconds between looks at the queue, while nothing is written."""


def show_logs(run: str, rank: int | None = None, follow: bool = False, lines: int | None = None) -> None:
    """Print the log of a run.

    Args:
        run: run folder.
        rank: of this rank instead of the job.
        follow: go on as it grows, until the job is over or Ctrl-C.
        lines: only the last so many; None prints all.

    Raises:
        UserError: there is no such run, or no log.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(Problem("RUN", "is not a run folder", "see: trireme jobs", run))
    record = read_record(folder)
    if record and record.runs:
        each = ", ".join(record.runs[:3]) + (" ..." if len(record.runs) > 3 else "")
        raise UserError(Problem("RUN", "is a sweep of several runs", f"name one of them: {each}", run))
    file = _wait_for(folder, rank) if follow else log_file(folder, rank)
    if file is None:
        raise UserError(_nothing_yet(folder, rank))
    with file.open("rb") as stream, suppress(KeyboardInterrupt):
        _print_end(stream, lines)
        while follow and (_goes_on(folder, stream) or stream.tell() < file.stat().st_size):
            sys.stdout.buffer.write(stream.read())
            sys.stdout.flush()


def log_file(folder: Path, rank: int | None) -> Path | None:
    """The newest log of a run; None before there is any.

    The job's own, with what rank 0 says; on one machine without a cluster ``log.txt``. Other ranks have files of
    theirs for each start.
    """
    if rank:
        parts = folder.glob(f"logs/*/attempt_*/{rank}/std*.log")
        return max((path for path in parts if path.stat().st_size), key=lambda path: path.stat().st_mtime, default=None)
    record = read_record(folder)
    files = [Path(record.log)] if record else []
    return next((path for path in (*files, folder / "log.txt") if path.is_file()), None)


def _print_end(stream: BinaryIO, lines: int | None) -> None:
    wanted = stream if lines is None else deque(stream, maxlen=lines)
    for line in wanted:
        sys.stdout.buffer.write(line)
    sys.stdout.flush()


def _wait_for(folder: Path, rank: int | None) -> Path | None:
    """The log, once there is one; None if the job is over without."""
    said = False
    while (file := log_file(folder, rank)) is None:
        if not _job_goes_on(folder):
            return None
        if not said:
            print(_nothing_yet(folder, rank).why, file=sys.stderr, flush=True)
            said = True
        time.sleep(POLL)
    return file


def _goes_on(folder: Path, stream: BinaryIO) -> bool:
    """Whether more may come; waits for it, looking at the queue now and then."""
    deadline, at = time.monotonic() + ASK, stream.tell()
    while time.monotonic() < deadline:
        time.sleep(POLL)
        if Path(stream.name).stat().st_size > at:
            return True
    return _job_goes_on(folder)


def _job_goes_on(folder: Path) -> bool:
    """Of a run without a job nobody knows: it does until Ctrl-C; also while the controller does not answer."""
    record = read_record(folder)
    try:
        return record is None or any(job.goes_on for job in jobs_of(record.job))
    except NoAnswer:
        return True


def _nothing_yet(folder: Path, rank: int | None) -> Problem:
    whose = f"rank {rank}" if rank else "the run"
    record = read_record(folder)
    job = next(iter(jobs_of(record.job)), None) if record else None
    if job and job.goes_on:
        reason = f" ({job.reason})" if job.state == "PENDING" else ""
        return Problem("RUN", f"{whose} has written nothing yet: job {job.id} is {job.state}{reason}", "", str(folder))
    return Problem("RUN", f"{whose} has left no log", "see what is in its folder logs/", str(folder))
