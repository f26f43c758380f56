"""torch's elastic agent, with what it lacks: it passes signals on and waits for ranks to save, and it knows which
failures are final.

torch's own agent ends ranks some seconds after a signal, knows nothing of SIGUSR1, and starts ranks again whatever they
failed with, ``--max-restarts`` times.
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

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup, WorkerSpec
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import LogsSpecs, SignalException

from ..errors import UserError
from ..trainer.interruption import RELAYED_AS, SAME_KEYSTROKE, answered_by
from .error_report import DIVERGED, SAVED, USER_ERROR, Diverged, LeftEarly, RanksFailed
from .failures import raise_failure

FINAL = (SAVED, USER_ERROR, DIVERGED)
"""Exit codes of ranks that would only come again."""
SAVING_SECONDS = 1800.0
"""How long ranks may take to finish their step and save after a signal; as long as they wait for each other."""
AFTER_FAILURE = 10
"""Seconds that the peers of a failed rank have to end; one that hangs in a collective never would."""


_Agent: Any = LocalElasticAgent  # decorators hide its types


class Agent(_Agent):
    """Starts ranks, watches them, and tells them what signals this process gets."""

    def __init__(self, spec: WorkerSpec, logs_specs: LogsSpecs, log_of: Callable[[int], str]) -> None:
        """``log_of``: the log file of a rank, empty for one that writes to the terminal."""
        super().__init__(spec, logs_specs)
        self.log_of = log_of
        self._failures: dict[int, Any] = {}
        self.received: signal.Signals | None = None
        """The first signal that was passed on."""
        self._received_at = 0.0
        self._ranks: list[int] = []

    def relaying(self) -> contextlib.AbstractContextManager[None]:
        """Inside, signals go to the ranks. Does nothing outside the main thread."""
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
        # To the ranks alone, not to their groups: what they have started (loaders) goes when they go.
        self._send(RELAYED_AS.get(received, received))

    def _send(self, number: signal.Signals) -> None:
        for rank in self._ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank, number)

    def leave_together(self, seconds: float) -> None:
        """Wait until the agents of all machines have come here: one of them serves what the others ask all the time."""
        self._exit_barrier_timeout = seconds
        self._exit_barrier()

    # -- what torch's agent calls -----------------------------------------------------------------------------

    def _start_workers(self, worker_group: WorkerGroup) -> dict[int, Any]:
        ranks = super()._start_workers(worker_group)
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
