"""Run a function as one of several ranks. If ranks fail, report one error for the run: that of the rank that failed
first.

Every failing rank writes an error file (in torch elastic's format, so ``torchrun`` understands it too). When a rank
dies, its peers fail a moment later with errors about closed connections. The process that started the ranks picks the
failure that caused the others.
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
from ..trainer.parent_process import end_with
from .error_report import (
    DIVERGED,
    FAILED,
    INTERRUPTED,
    SAVED,
    USER_ERROR,
    Diverged,
    LeftEarly,
    RanksFailed,
    show_crash,
    show_problems,
)
from .slurm.job_task import LOGS

if TYPE_CHECKING:
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

OWN_LAUNCH = "TRIREME_LAUNCHER_PID"
"""Variable that trireme sets in ranks that it starts: the parent shows their failures, and they end with the parent."""
GRACE_SECONDS = 3.0
"""Delay of a user error in ranks other than 0: if all ranks have it, rank 0 reports it and the launcher ends them."""


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
        # With the time of the error, not of the wait, so that it counts as the first failure.
        record(error, raised, debug)
        if ours:
            if rank > 0:
                traceback.print_exc()  # into the log file of this rank
        elif user:
            if debug:
                traceback.print_exc()
            if _agent_would_restart() or not os.environ.get(ERROR_FILE):  # else torch's agent prints the error file
                show_problems(error.problems)
            _end_agent()
        elif not os.environ.get(ERROR_FILE):
            show_crash(error, debug)
        return USER_ERROR if user else FAILED
    return 0


def leave(code: int) -> NoReturn:
    """End this process; a rank skips destructors. In a failed rank the process group's destructor would wait for peers;
    in a finished one, destructors of C++ threads aborted in rare cases on a loaded machine."""
    if "RANK" in os.environ:
        if not code:
            atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _end_with_parent() -> None:
    """Have Linux kill this rank when the command that started it dies."""
    if (parent := os.environ.get(OWN_LAUNCH)) is not None:
        end_with(int(parent))


def _agent_would_restart() -> bool:
    """Whether torchrun would start these ranks again."""
    left = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) - int(
        os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    )
    return OWN_LAUNCH not in os.environ and "TORCHELASTIC_RUN_ID" in os.environ and left > 0


def _end_agent() -> None:
    """Keep torchrun from restarting these ranks, since their exit code is final.

    torch's agent restarts ranks after every exit code but 0, and 0 would tell a script that training is done. A signal
    ends the agent without a new attempt. trireme's own launcher knows final exit codes.
    """
    if _agent_would_restart():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the agent relays the signal to this rank too
        os.kill(os.getppid(), signal.SIGTERM)


def first_failure(failures: Mapping[int, ProcessFailure]) -> tuple[int, ProcessFailure]:
    """The rank and failure that caused the other failures."""
    return min(failures.items(), key=lambda item: precedence(item[1], failures))


def precedence(failure: ProcessFailure, failures: Mapping[int, ProcessFailure]) -> tuple[int, float]:
    """Sort key of a failure: the smallest is the cause of the others.

    A user error is never a consequence. A rank that ended without an error file (killed, or a library called exit)
    comes before the errors of its peers. Otherwise the earliest error file counts.
    """
    data = failure.error_file_data["trireme"] if left_a_file(failure) else None
    if data and data["problems"] is not None:
        return 0, data["time"]
    if _ended_silently(failure, failures):
        return 1, failure.timestamp
    return (2, data["time"]) if data else (3, failure.timestamp)


def _ended_silently(failure: ProcessFailure, failures: Mapping[int, ProcessFailure]) -> bool:
    """Whether a rank was ended neither by an exception nor by the launcher (SIGTERM, and SIGKILL long after it)."""
    if left_a_file(failure) or failure.exitcode == INTERRUPTED or failure.signal_name() in ("SIGTERM", "SIGINT"):
        return False
    if failure.signal_name() == "SIGABRT" and any(left_a_file(other) for other in failures.values()):
        return False  # C++ aborts when the connection to a dead peer breaks
    return failure.timestamp - min(other.timestamp for other in failures.values()) < 10


def left_a_file(failure: ProcessFailure) -> bool:
    return isinstance(failure.error_file_data, dict) and "trireme" in failure.error_file_data


def write_message(folder: Path, machine: int, failures: Mapping[int, ProcessFailure], error: Exception) -> None:
    """Write this machine's message about its failed ranks to a file, which ``first_message`` reads."""
    order = precedence(first_failure(failures)[1], failures)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"machine_{machine}.json").write_text(json.dumps({"order": order, "text": str(error)}))


def first_message(folder: Path) -> str | None:
    """The message of the machine whose rank failed first; None if no machine has written one."""
    found = [json.loads(file.read_text()) for file in folder.glob("machine_*.json")]
    return min(found, key=lambda message: message["order"])["text"] if found else None


def raise_failure(failures: Mapping[int, ProcessFailure], world_size: int, log_of: Callable[[int], str]) -> None:
    """Raise the error that describes failed ranks.

    Args:
        failures: failures by rank.
        log_of: gives the log file of a rank, empty for rank 0, which writes to the terminal.
    """
    # These endings are common to all ranks: the launcher only killed ranks that were a moment slower.
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
        failed = RanksFailed(
            f"rank {rank} was ended by {failure.signal_name()}{hint}; the other ranks were stopped{where}"
        )
        failed.signal = failure.signal_name()
        raise failed
    raise RanksFailed(f"rank {rank} ended with exit code {failure.exitcode}; the other ranks were stopped{where}")
