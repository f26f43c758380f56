"""torch's elastic agent, extended: it relays signals, waits for ranks to save, and restarts them only if that may help.

torch's own agent kills ranks seconds after a signal, ends at once on SIGUSR1, and restarts ranks ``--max-restarts``
times after any failure.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch.distributed.elastic.multiprocessing.api as multiprocessing
from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.subprocess_handler import SubprocessHandler

from ..errors import UserError
from ..trainer.interruption import RELAYED_AS, SAME_KEYSTROKE, answered_by
from .error_report import DIVERGED, SAVED, USER_ERROR, Diverged, LeftEarly, RanksFailed
from .failures import raise_failure
from .forked import forked

FINAL = (SAVED, USER_ERROR, DIVERGED)
"""Exit codes after which ranks are not restarted: they saved and left on purpose, or would fail in the same way."""
SAVING_SECONDS = 1800.0
"""Time after a signal for ranks to finish their step and save; equal to the default timeout of their collectives."""
AFTER_FAILURE = 10
"""Seconds after which the peers of a failed rank are killed, since a peer may hang in a collective."""


class _RankHandler(SubprocessHandler):
    """torch's handle of a rank's process. Here ranks are forked where possible, with output files that torch opens."""

    def _popen(self, args: tuple, env: dict[str, str]) -> Any:
        files = [file.fileno() if file else number for number, file in ((1, self._stdout), (2, self._stderr))]
        return forked(args, env, (0, *files)) or super()._popen(args, env)


_Agent: Any = LocalElasticAgent  # decorators hide its types


class Agent(_Agent):
    """Starts ranks, watches them, and relays signals of this process to them."""

    def __init__(self, spec: WorkerSpec, logs_specs: LogsSpecs, log_of: Callable[[int], str]) -> None:
        """``log_of``: gives the log file of a rank, empty for a rank that writes to the terminal."""
        super().__init__(spec, logs_specs)
        self.log_of = log_of
        self._failures: dict[int, Any] = {}
        self.received: signal.Signals | None = None
        """The first signal that arrived."""
        self._received_at = 0.0
        self._ranks: list[int] = []

    def relaying(self) -> contextlib.AbstractContextManager[None]:
        """Context in which signals are relayed to the ranks. It does nothing outside the main thread."""
        return answered_by(self._relay)

    def _relay(self, number: int, frame: FrameType | None) -> None:
        since, received = time.monotonic() - self._received_at, signal.Signals(number)
        if self.received is None:
            self.received, self._received_at = received, time.monotonic()
        elif number == signal.SIGINT and since > SAME_KEYSTROKE:
            self._send(signal.SIGKILL)
            return
        if not self._ranks:
            raise SignalException(f"got {received.name} before there are ranks", sigval=received)
        # Signal the ranks only, not their process groups: data loader workers end with their rank.
        self._send(RELAYED_AS.get(received, received))

    def _send(self, number: signal.Signals) -> None:
        for rank in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, number)

    def leave_together(self, seconds: float) -> None:
        """Wait for the agents of all machines: one of them serves the rendezvous, which the others need until then."""
        self._exit_barrier_timeout = seconds
        self._exit_barrier()

    # -- methods that torch's agent calls ---------------------------------------------------------------------

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        theirs = multiprocessing.get_subprocess_handler
        multiprocessing.get_subprocess_handler = _RankHandler  # torch's agent has no hook for this
        try:
            ranks = super()._start_workers(worker_group)
        finally:
            multiprocessing.get_subprocess_handler = theirs
        self._ranks = list(ranks.values())
        assert self._pcontext is not None
        close = self._pcontext.close
        self._pcontext.close = lambda death_sig=None, timeout=AFTER_FAILURE: close(death_sig, timeout)
        return ranks

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        if self.received and time.monotonic() - self._received_at > SAVING_SECONDS:
            self._send(signal.SIGKILL)
        result = super()._monitor_workers(worker_group)
        if result.failures:
            self._ranks, self._failures = [], result.failures
            if self.received or any(failure.exitcode in FINAL for failure in result.failures.values()):
                self._remaining_restarts = 0
        return result

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        if self.received:
            raise SignalException("got a signal between two attempts", sigval=self.received)
        spec = worker_group.spec
        count = spec.max_restarts - self._remaining_restarts
        try:
            raise_failure(self._failures, len(worker_group.workers), self.log_of)
        except (RanksFailed, LeftEarly, Diverged, UserError) as error:
            print(f"{error}\nstarting all ranks again ({count} of {spec.max_restarts})", file=sys.stderr, flush=True)
        super()._restart_workers(worker_group)
