"""How a failure in one of many ranks reaches the person, once.

Every failing rank leaves an error file (torch elastic's format, so ``torchrun`` understands it too). Whoever started
the ranks finds the one failure that the others followed from: when a rank dies, its peers fail a moment later with
errors about closed connections, which would only hide the cause.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import Problem, UserError
from ..trainer.error_file import ERROR_FILE, record
from .error_report import (
    DIVERGED,
    FAILED,
    INTERRUPTED,
    SAVED,
    USER_ERROR,
    Diverged,
    LeftEarly,
    RanksFailed,
    show_problems,
)
from .slurm.job_task import LOGS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

OWN_LAUNCH = "TRIREME_LAUNCHER_PID"
"""Set in ranks that trireme started itself: their failures are shown by the parent, and they end with it."""
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
    except LeftEarly:
        _end_agent()
        return SAVED
    except Diverged:
        _end_agent()
        return DIVERGED
    except Exception as error:
        raised = time.time()
        user = isinstance(error, UserError)
        ours = OWN_LAUNCH in os.environ or (LOGS in os.environ and bool(os.environ.get(ERROR_FILE)))
        if user and rank > 0 and not ours:
            time.sleep(GRACE_SECONDS)
        record(error, raised)  # before its peers see that it is gone: the wait does not count
        if ours:
            if rank > 0:
                traceback.print_exc()  # into the log file of this rank
        elif user:
            if debug:
                traceback.print_exc()
            if _agent_would_restart() or not os.environ.get(ERROR_FILE):  # else torch's agent shows the file, last
                show_problems(error.problems)
            _end_agent()
        elif not os.environ.get(ERROR_FILE):
            traceback.print_exc()
        return USER_ERROR if user else FAILED
    return 0


def leave(code: int) -> NoReturn:
    """End this process. A failed rank must not wait for its peers in the destructors of the process group; and one that
    is done was seen to abort in destructors of C++ threads, rarely, on a busy machine."""
    if "RANK" in os.environ:
        if not code:
            atexit._run_exitfuncs()
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

    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != int(parent):  # it died before the line above
        os._exit(FAILED)


def _agent_would_restart() -> bool:
    """Whether torchrun would start these ranks again."""
    left = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) - int(
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    )
    return OWN_LAUNCH not in os.environ and "TORCHELASTIC_RUN_ID" in os.environ and left > 0


def _end_agent() -> None:
    """Keep torchrun from starting these ranks again: what they end with is final.

    torch's agent starts ranks again after whatever they end with but 0, and 0 would tell a script that training is
    done. A signal ends it without a new attempt. trireme's own launcher knows final exit codes.
    """
    if _agent_would_restart():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the agent passes it on
        os.kill(os.getppid(), signal.SIGTERM)


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank and failure that the others followed from."""
    return min(failures.items(), key=lambda item: precedence(item[1], failures))


def precedence(failure: ProcessFailure, failures: Mapping[int, ProcessFailure]) -> tuple[int, float]:
    """Smaller for what others followed from.

    A user error is never a consequence. A rank that ended without leaving an error file (killed, or a library called
    exit) comes before the errors of its peers. Else the earliest error file counts.
    """
    data = failure.error_file_data["trireme"] if left_a_file(failure) else None
    if data and data["problems"] is not None:
        return 0, data["time"]
    if _ended_silently(failure, failures):
        return 1, failure.timestamp
    return (2, data["time"]) if data else (3, failure.timestamp)


def _ended_silently(failure: ProcessFailure, failures: Mapping[int, ProcessFailure]) -> bool:
    """Whether a rank ended by something else than an exception or the launcher (SIGTERM; SIGKILL long after that)."""
    if left_a_file(failure) or failure.exitcode == INTERRUPTED or failure.signal_name() in ("SIGTERM", "SIGINT"):
        return False
    if failure.signal_name() == "SIGABRT" and any(left_a_file(other) for other in failures.values()):
        return False  # what C++ does when the connection to a dead peer breaks
    return failure.timestamp - min(other.timestamp for other in failures.values()) < 10


def left_a_file(failure: ProcessFailure) -> bool:
    return isinstance(failure.error_file_data, dict) and "trireme" in failure.error_file_data


def leave_word(folder: Path, machine: int, failures: Mapping[int, ProcessFailure], error: Exception) -> None:
    """Note what this machine shows of its failed ranks, for who looks at all machines (``first_word``)."""
    order = precedence(first_failure(failures)[1], failures)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"machine_{machine}.json").write_text(json.dumps({"order": order, "text": str(error)}))


def first_word(folder: Path) -> str | None:
    """What the machine says whose rank failed first; None if none has left word."""
    words = [json.loads(file.read_text()) for file in folder.glob("machine_*.json")]
    return min(words, key=lambda word: word["order"])["text"] if words else None


def raise_failure(failures: Mapping[int, ProcessFailure], world_size: int, log_of: Callable[[int], str]) -> None:
    """Raise what is to be shown of failed ranks.

    Args:
        failures: by rank.
        log_of: the log file of a rank, empty for rank 0, which writes to the terminal.
    """
    # All ranks have ended so, together; the launcher only ended those that were a moment slower.
    for code, ending in ((SAVED, LeftEarly), (DIVERGED, Diverged)):
        if any(failure.exitcode == code for failure in failures.values()):
            raise ending
    rank, failure = first_failure(failures)
    data = failure.error_file_data["trireme"] if left_a_file(failure) else None
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
