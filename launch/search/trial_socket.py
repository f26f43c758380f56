"""The socket through which trials report metrics to their search and learn whether to stop (``trial_reports.py``)."""

from __future__ import annotations

import json
import socketserver
import tempfile
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ...trainer.callbacks.metrics_file import NOT_FINITE
from ...trainer.callbacks.trial_reports import TRIAL
from .engines.engine import GO_ON, Verdict

Answer = Callable[[int, int, dict[str, Any], bool], Verdict]
"""Function of trial, step, metrics, and whether it is the last line."""


class TrialSocket:
    """Listens until it is closed; each connection has a thread of its own.

    Args:
        answer: called for every report. If it raises an exception, the trial goes on, and the exception is kept in
            ``failure``.
    """

    def __init__(self, answer: Answer) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trireme_search_")
        self.path = str(Path(self._folder.name) / "reports")
        self.failure: Exception | None = None
        """The first failure of a pruner, or of the user's own function."""
        self._server = _Server(self.path, _Handler)
        self._server.answer = lambda message: self._answered(answer, message)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def variables(self, number: int, watched: list[str]) -> dict[str, str]:
        """Environment variables that make a process this trial."""
        return {TRIAL: json.dumps({"path": self.path, "number": number, "watched": watched})}

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()

    def _answered(self, answer: Answer, message: Mapping[str, Any]) -> Verdict:
        metrics = {
            name: float(value) if isinstance(value, str) and value in NOT_FINITE else value
            for name, value in message["metrics"].items()
        }
        try:
            return answer(message["trial"], message["step"], metrics, message["last"])
        except Exception as error:
            self.failure = self.failure or error
            return GO_ON


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    answer: Callable[[Mapping[str, Any]], Verdict]


class _Handler(socketserver.StreamRequestHandler):
    server: _Server  # type: ignore[assignment]

    def handle(self) -> None:
        with suppress(OSError):  # the trial may be killed at any time
            for line in self.rfile:
                verdict = self.server.answer(json.loads(line))
                self.wfile.write(json.dumps(asdict(verdict)).encode() + b"\n")
