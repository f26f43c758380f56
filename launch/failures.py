"""How a failure in one of many ranks reaches the person, once.

Every failing rank leaves an error file (torch elastic's format, so ``torchrun`` understands it too). Whoever started
the ranks finds the one failure that the others followed from: when a rank dies, its peers fail a moment later with
errors about closed connections, which would only hide the cause.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import Problem, UserError
from .report import FAILED, INTERRUPTED, USER_ERROR, RanksFailed, show_problems

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

OWN_LAUNCH = "TRIREME_LAUNCHER_PID"
"""Set in ranks that trireme started itself: their failures are shown by the parent, and they end with it."""
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"
GRACE_SECONDS = 3.0
"""How long a rank other than 0 holds back a user error: if all ranks see it, the launcher ends this one before."""


def run_rank(function: Callable[[], Any], debug: bool = False) -> int:
    """Call ``function`` as one of several ranks; returns the exit code."""
    rank = int(os.environ["RANK"])
    try:
        _end_with_parent()
        function()
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        record(error)
        user = isinstance(error, UserError)
        if OWN_LAUNCH in os.environ:
            if rank > 0:
                traceback.print_exc()  # into the log file of this rank
        elif user:
            if rank > 0:
                time.sleep(GRACE_SECONDS)
            if debug:
                traceback.print_exc()
            show_problems(error.problems)
        elif not os.environ.get(ERROR_FILE):
            traceback.print_exc()
        return USER_ERROR if user else FAILED
    return 0


def leave(code: int) -> NoReturn:
    """End this process. A failed rank must not wait for its peers in the destructors of the process group."""
    if "RANK" in os.environ and code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _end_with_parent() -> None:
    """Have Linux kill this rank when the process that started it dies.

    Else, after a ``kill -9`` of the command, its ranks would go on writing into the run folder of the next start.
    """
    parent = os.environ.get(OWN_LAUNCH)
    if parent is None or sys.platform != "linux":
        return
    import ctypes
    import signal

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(FAILED)


def record(error: Exception) -> None:
    """Leave ``error`` in this rank's error file, if its launcher named one."""
    path = os.environ.get(ERROR_FILE)
    if not path:
        return
    user = isinstance(error, UserError)
    stack = str(error) if user else "".join(traceback.format_exception(error))
    extra = {"py_callstack": stack, "timestamp": str(int(time.time()))}
    problems = (
        [vars(problem) if isinstance(problem, Problem) else problem for problem in error.problems] if user else None
    )
    data = {
        "message": {"message": f"{type(error).__name__}: {error}", "extraInfo": extra},
        "trireme": {"problems": problems, "time": time.time()},
    }
    try:
        Path(path).write_text(json.dumps(data, default=str))
    except OSError:  # a full disk must not hide the error itself, nor leave a file that nobody can read
        Path(path).unlink(missing_ok=True)
        print(stack, file=sys.stderr)


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank and failure that the others followed from.

    A user error is never a consequence. A rank that ended without leaving an error file (killed, or a library called
    exit) comes before the errors of its peers. Else the earliest error file counts.
    """

    def order(item: tuple[int, ProcessFailure]) -> tuple[int, float]:
        data = item[1].error_file_data["trireme"] if _left_a_file(item[1]) else None
        if data and data["problems"] is not None:
            return 0, data["time"]
        if _ended_silently(item[1], failures):
            return 1, item[1].timestamp
        return (2, data["time"]) if data else (3, item[1].timestamp)

    return min(failures.items(), key=order)


def _ended_silently(failure: ProcessFailure, failures: Mapping[int, ProcessFailure]) -> bool:
    """Whether a rank ended by something else than an exception or the launcher (SIGTERM; SIGKILL long after that)."""
    if _left_a_file(failure) or failure.exitcode == INTERRUPTED or failure.signal_name() in ("SIGTERM", "SIGINT"):
        return False
    if failure.signal_name() == "SIGABRT" and any(_left_a_file(other) for other in failures.values()):
        return False  # what C++ does when the connection to a dead peer breaks
    return failure.timestamp - min(other.timestamp for other in failures.values()) < 10


def _left_a_file(failure: ProcessFailure) -> bool:
    return isinstance(failure.error_file_data, dict) and "trireme" in failure.error_file_data


def raise_failure(failures: Mapping[int, ProcessFailure], world_size: int, log_of: Callable[[int], str]) -> None:
    """Raise what is to be shown of failed ranks.

    Args:
        failures: by rank.
        log_of: the log file of a rank, empty for rank 0, which writes to the terminal.
    """
    rank, failure = first_failure(failures)
    data = failure.error_file_data["trireme"] if _left_a_file(failure) else None
    if data and data["problems"] is not None:
        raise UserError(*(Problem(**problem) if isinstance(problem, dict) else problem for problem in data["problems"]))
    where = f"; its output: {log_of(rank)}" if log_of(rank) else ""
    if data:
        message: Any = failure.error_file_data["message"]
        stack = message["extraInfo"]["py_callstack"].rstrip()
        raise RanksFailed(f"{stack}\n(rank {rank} of {world_size}{where})")
    if failure.exitcode < 0:
        hint = " (often: the machine ran out of memory)" if failure.signal_name() == "SIGKILL" else ""
        raise RanksFailed(
            f"rank {rank} was ended by {failure.signal_name()}{hint}; the other ranks were stopped{where}"
        )
    raise RanksFailed(f"rank {rank} ended with exit code {failure.exitcode}; the other ranks were stopped{where}")
