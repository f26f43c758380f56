"""``trireme logs RUN``: print the log of a run, of its SLURM job or of one of its ranks; ``-f`` follows the log."""

from __future__ import annotations

import difflib
import sys
import time
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import BinaryIO

from ...errors import Problem, UserError
from .job_queue import jobs_of
from .job_record import read_record
from .slurm_commands import NoAnswer

POLL = 0.5
"""Seconds between two checks of the file."""
ASK = 10.0
"""Seconds between two queries of the queue while the log does not grow."""


def show_logs(run: str, rank: int | None = None, follow: bool = False, lines: int | None = None) -> None:
    """Print the log of a run.

    Args:
        run: run folder.
        rank: show this rank's log instead of the job's.
        follow: print what is added, until the job ends or Ctrl-C.
        lines: print only the last lines; None prints all.

    Raises:
        UserError: there is no such run, or no log.
    """
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(Problem("RUN", *_no_run(folder), run))
    record = read_record(folder)
    if record and record.runs:
        each = ", ".join(record.runs[:3]) + (" ..." if len(record.runs) > 3 else "")
        raise UserError(Problem("RUN", "is a sweep of several runs", f"name one of them: {each}", run))
    files = _wait_for(folder, rank) if follow else log_files(folder, rank)
    if not files:
        raise UserError(_nothing_yet(folder, rank))
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        streams = [stack.enter_context(file.open("rb")) for file in files]
        for stream in streams:
            _print_end(stream, lines, heading=len(streams) > 1)
        while follow and (_goes_on(folder, streams) or any(map(_grown, streams))):
            for stream in filter(_grown, streams):
                sys.stdout.buffer.write(stream.read())
            sys.stdout.flush()


def _no_run(folder: Path) -> tuple[str, str]:
    """Why a path is no run's folder, and the runs that lie near it."""
    near = sorted(
        str(path) for parent in (Path("runs"), folder, folder.parent) for path in parent.glob("*") if _is_run(path)
    )
    near = list(dict.fromkeys(near))
    names = difflib.get_close_matches(str(folder), near, n=3, cutoff=0.3) or near[:3]
    why = "there is no such folder" if not folder.exists() else "is not the folder of a run"
    if names:
        return why, f"give one that holds a run, such as {' or '.join(names)}"
    return why, "give the folder of a run, which a run names when it ends (run.dir, by default runs/NAME)"


def _is_run(path: Path) -> bool:
    return path.is_dir() and any((path / name).exists() for name in ("log.txt", "logs", "checkpoints"))


def log_files(folder: Path, rank: int | None) -> list[Path]:
    """The newest logs of a run; empty before there are any.

    The log of rank 0 is that of the SLURM job, or ``log.txt`` for a run without a job. Other ranks have a log file
    (``logs/rankN.log``; in a notebook ``rankN.out``), and output files for each start, of which the newest is shown.
    """
    if rank:
        logged = [file for file in (folder / "logs" / f"rank{rank}.{end}" for end in ("log", "out")) if _says(file)]
        output = filter(_says, folder.glob(f"logs/*/attempt_*/{rank}/std*.log"))
        return [*logged, *sorted(output, key=lambda path: path.stat().st_mtime)[-1:]]
    record = read_record(folder)
    files = [Path(record.log)] if record else []
    return [path for path in (*files, folder / "log.txt") if path.is_file()][:1]


def _says(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _print_end(stream: BinaryIO, lines: int | None, heading: bool) -> None:
    if heading:
        sys.stdout.buffer.write(f"==> {stream.name} <==\n".encode())
    wanted = stream if lines is None else deque(stream, maxlen=lines)
    for line in wanted:
        sys.stdout.buffer.write(line)
    sys.stdout.flush()


def _wait_for(folder: Path, rank: int | None) -> list[Path]:
    """Wait until a log exists and return the logs; empty if the job ends without one."""
    said = False
    while not (files := log_files(folder, rank)):
        if not _job_goes_on(folder):
            return []
        if not said:
            print(_nothing_yet(folder, rank).why, file=sys.stderr, flush=True)
            said = True
        time.sleep(POLL)
    return files


def _goes_on(folder: Path, streams: Sequence[BinaryIO]) -> bool:
    """Wait for more text; whether more may come. The queue is asked every ``ASK`` seconds."""
    deadline = time.monotonic() + ASK
    while time.monotonic() < deadline:
        time.sleep(POLL)
        if any(map(_grown, streams)):
            return True
    return _job_goes_on(folder)


def _grown(stream: BinaryIO) -> bool:
    return Path(stream.name).stat().st_size > stream.tell()


def _job_goes_on(folder: Path) -> bool:
    """Whether the run's job may still write. True for a run without a job, and while the controller does not answer."""
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
        why = f"{whose} has written nothing yet: job {job.id} is {job.state}{reason}"
        return Problem("RUN", why, "wait for it, or see: trireme jobs", str(folder))
    return Problem("RUN", f"{whose} has left no log", "see what is in its folder logs/", str(folder))
