"""The search's side of ``trial_server.py``: start trials in forked processes, signal them, and see how they end."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .trial_process import FAILED, KILLED

GRACE_SECONDS = 120.0
"""Seconds in which a trial that was told to leave may finish its step and save."""


@dataclass
class Started:
    """A trial that runs."""

    id: int
    result: Path
    server: subprocess.Popen[bytes]
    ended: threading.Event = field(default_factory=threading.Event)
    status: int | None = None
    """Exit code, or minus the signal's number; None if its server has died."""


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
        self._count = 0
        self._running: dict[int, Started] = {}
        self._server = self._start_server()

    def start(self, request: dict[str, Any]) -> Started:
        """Start a trial. ``request`` holds all that ``trial_process.run_trial`` needs but the file of its result."""
        with self._lock:
            if self._server.poll() is not None:
                self._server = self._start_server()
            self._count += 1
            started = Started(self._count, Path(self._folder.name) / f"{self._count}.json", self._server)
            self._running[started.id] = started
            more = {"id": started.id, "result": str(started.result), "threads": self.threads}
            self._send({**request, **more})
        return started

    def tell(self, started: Started, number: signal.Signals) -> None:
        """Send a signal to a trial; nothing happens if it has ended."""
        with self._lock:
            if not started.ended.is_set():
                self._send({"id": started.id, "signal": int(number)})

    def wait(self, started: Started, seconds: float | None = None) -> bool:
        """Whether a trial has ended within some seconds."""
        return started.ended.wait(seconds)

    def ending(self, started: Started) -> tuple[str, str]:
        """How a trial has ended: its kind and the reason."""
        if started.result.exists():
            found = json.loads(started.result.read_text())
            return found["kind"], found["text"]
        if started.status is None:
            return KILLED, "the process that trials are forked from was killed"
        if started.status < 0:
            return KILLED, f"its process was ended by {signal.Signals(-started.status).name}"
        return FAILED, f"its process ended with exit code {started.status}"

    def leave(self, started: Started) -> None:
        """Have a trial save and leave; one that does not within ``GRACE_SECONDS`` is killed."""
        self.tell(started, signal.SIGINT)
        if not self.wait(started, GRACE_SECONDS):
            self.kill(started)

    def kill(self, started: Started) -> None:
        self.tell(started, signal.SIGKILL)
        self.wait(started, 30)

    def close(self) -> None:
        """End the server, and with it trials that still run."""
        with suppress(OSError):
            assert self._server.stdin is not None
            self._server.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._server.wait(5)
        if self._server.poll() is None:
            self._server.kill()
            self._server.wait()
        self._folder.cleanup()

    def _start_server(self) -> subprocess.Popen[bytes]:
        """Start a server from a thread that lives as long as the server does: Linux ends a child that asked for it when
        the thread that started it ends."""
        found: queue.SimpleQueue[Any] = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(found,), daemon=True).start()
        server = found.get()
        if isinstance(server, BaseException):
            raise server
        return server

    def _serve(self, found: queue.SimpleQueue[Any]) -> None:
        try:
            server = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.trial_server", str(os.getpid()), json.dumps(self.sample)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                start_new_session=True,  # Ctrl-C reaches the search alone, which tells its trials
            )
        except BaseException as error:
            found.put(error)
            return
        found.put(server)
        self._listen(server)

    def _send(self, request: dict[str, Any]) -> None:
        with suppress(OSError):  # a server that has died is noticed by the listener
            assert self._server.stdin is not None
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()

    def _listen(self, server: subprocess.Popen[bytes]) -> None:
        """Note the ends of trials until the server ends."""
        assert server.stdout is not None
        for line in server.stdout:
            answer = json.loads(line)
            if "status" in answer:
                self._end(answer["id"], answer["status"])
        server.wait()
        time.sleep(0.2)  # its trials are killed with it
        with self._lock:
            left = [number for number, started in self._running.items() if started.server is server]
        for number in left:
            self._end(number, None)

    def _end(self, number: int, status: int | None) -> None:
        with self._lock:
            started = self._running.pop(number, None)
        if started is not None:
            started.status = status
            started.ended.set()
