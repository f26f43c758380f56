"""Start the trials of a search in their own processes, send them signals, and detect how they end.

A trial is forked by this process's fork server (``../forked.py``), which has imported everything once, so it starts
within milliseconds. Where forking is not possible, the trial is started in the usual way. Trials end with the search.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..elastic import environment
from ..forked import Forked, ForkServer, forked
from .trial_process import FAILED, INTERRUPTED, KILLED, OUTPUT, SAMPLE

ENTRY = "trireme.launch.search.trial_process"
IMPORTS = (
    "datasets",
    "transformers.generation.utils",
    "torch.distributed.elastic.multiprocessing.errors",
    "torch.distributed.launcher",
    "torch.distributed.pipelining",
    "trireme.launch.fork",
    f"{ENTRY}:warm_up",
)
"""Modules that trials and their ranks need beside the usual; the fork server imports them before it forks."""
GRACE_SECONDS = 120.0
"""Seconds in which a trial that was told to leave may finish its step and save."""


@dataclass(eq=False)
class Started:
    """A trial that runs."""

    result: Path
    process: Forked | subprocess.Popen[bytes]
    told: bool = False
    """Whether it was sent a signal."""


class TrialStarter:
    """Starts trials through one server, which is started again if it dies.

    Args:
        sample: request by which the server warms up: recipe, overrides and folders of the search.
        threads: OMP_NUM_THREADS of the user; 0 if it is not set.
    """

    def __init__(self, sample: dict[str, Any], threads: int) -> None:
        self.sample, self.threads = sample, threads
        self._folder = tempfile.TemporaryDirectory(prefix="trireme_trials_")
        self._lock = threading.Lock()
        self._count, self._running = 0, list[Started]()
        self._owns_server, self._forks = ForkServer.current is None, True
        self._serve()

    def start(self, request: dict[str, Any]) -> Started:
        """Start a trial. ``request`` holds all that ``trial_process.run_trial`` needs but the file of its result."""
        with self._lock:
            self._count += 1
            order, result = (Path(self._folder.name) / f"{self._count}.{name}" for name in ("order", "json"))
            more = {"result": str(result), "threads": self.threads, "parent": os.getpid()}
            order.write_text(json.dumps({**request, **more}), encoding="utf-8")
            started = Started(result, self._process(order, Path(request["run_dir"]) / "logs"))
            self._running = [*(one for one in self._running if one.process.poll() is None), started]
        return started

    def tell(self, started: Started, number: signal.Signals) -> None:
        """Send a signal to a trial; nothing happens if it has ended."""
        started.told = True
        with suppress(ProcessLookupError):
            started.process.send_signal(number)

    def wait(self, started: Started, seconds: float | None = None) -> bool:
        """Whether a trial has ended within some seconds."""
        try:
            started.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def ending(self, started: Started) -> tuple[str, str]:
        """How a trial has ended: its kind and the reason."""
        if started.result.exists():
            found = json.loads(started.result.read_text())
            return found["kind"], found["text"]
        status = started.process.returncode
        assert status is not None
        if status < 0:
            return KILLED, f"its process was ended by {signal.Signals(-status).name}"
        if started.told:  # the signal came before the trial could note how it ends
            return INTERRUPTED, "before it had begun"
        return FAILED, f"its process ended with exit code {status}"

    def leave(self, started: Started) -> None:
        """Have a trial save and leave; one that does not within ``GRACE_SECONDS`` is killed."""
        self.tell(started, signal.SIGINT)
        if not self.wait(started, GRACE_SECONDS):
            self.kill(started)

    def kill(self, started: Started) -> None:
        self.tell(started, signal.SIGKILL)
        self.wait(started, 30)

    def close(self) -> None:
        """End trials that still run, and the server if it was started here."""
        for started in self._running:
            self.kill(started)
        if self._owns_server and ForkServer.current is not None:
            ForkServer.current.end()
        self._folder.cleanup()

    def _serve(self) -> None:
        """Start a server, unless there is one or none can fork here."""
        if self._forks:
            with environment({"OMP_NUM_THREADS": "1", SAMPLE: json.dumps(self.sample)}):
                ForkServer.start(IMPORTS, near_devices=True)

    def _process(self, order: Path, logs: Path) -> Forked | subprocess.Popen[bytes]:
        logs.mkdir(parents=True, exist_ok=True)
        command, variables = [sys.executable, "-u", "-m", ENTRY, str(order)], {**os.environ, "OMP_NUM_THREADS": "1"}
        with open(os.devnull, "rb") as nothing, (logs / OUTPUT).open("ab") as output:
            for _ in range(2):  # the server may have died since the last trial
                self._serve()
                process = forked(command, variables, (nothing.fileno(), output.fileno(), output.fileno()))
                if process is not None:
                    return process
                self._forks = self._forks and self._count > 1
            return subprocess.Popen(
                command, stdin=nothing, stdout=output, stderr=output, env=variables, start_new_session=True
            )
