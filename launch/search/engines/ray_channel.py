"""The socket through which Ray's trials talk to the search: each message is a line of JSON and gets an answer.

Ray sends ``begin`` when it has started a trial with some values, ``step`` to wait for the trial's next value, which may
take minutes, ``save`` for a checkpoint of the trial's present state, and ``stop`` when it has ended the trial.
"""

from __future__ import annotations

import json
import queue
import socketserver
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .kept_checkpoints import Start


@dataclass
class RayRun:
    """A trial of Ray while it runs."""

    numbers: list[int] = field(default_factory=list)
    """Numbers of the study's trials that ran for this trial of Ray; the last one runs now."""
    step: int = 0
    """The last step of which Ray knows the value."""
    results: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    orders: queue.Queue[str] = field(default_factory=queue.Queue)
    """Ray's orders after a value: ``save``, ``step``, ``stop``, or ``gone``."""
    asked: bool = False
    """Whether Ray has asked for the first value."""


@dataclass(frozen=True)
class Begun:
    """A trial that Ray has started."""

    run: RayRun
    values: dict[str, Any]
    start: Start | None
    devices: str


class RayChannel:
    """Listens until it is closed; each trial of Ray has a connection of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="trireme_ray_")
        self.path = str(Path(self._folder.name) / "trials")
        self.begun: queue.Queue[Begun | None] = queue.Queue()
        """Trials that Ray has started; None: there are no more."""
        self._runs: dict[str, RayRun] = {}
        self._by_number: dict[int, RayRun] = {}
        self._left = False
        self._server = _Server(self.path, _Handler)
        self._server.channel = self
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def bind(self, number: int, run: RayRun) -> None:
        """Note that a trial of the study runs for a trial of Ray."""
        run.numbers.append(number)
        self._by_number[number] = run

    def of_trial(self, number: int) -> RayRun | None:
        return None if self._left else self._by_number.get(number)

    def forget(self, number: int) -> None:
        self._by_number.pop(number, None)

    def let_go(self) -> None:
        """End all waiting: of Ray's trials, of the study's trials, and of threads that want the next trial."""
        self._left = True
        Path(self.path).unlink(missing_ok=True)  # its absence ends Ray's loop
        for run in list(self._runs.values()):
            run.orders.put("gone")
            run.results.put({"error": "the search is left", "step": run.step, "done": True})
        self.begun.put(None)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._folder.cleanup()

    def answer(self, message: dict[str, Any], run: RayRun | None) -> tuple[dict[str, Any], RayRun | None]:
        """The answer to a line, and the run that the connection belongs to from now on."""
        if message["do"] == "begin":
            # A trial that was paused begins again, as another actor under the same id.
            known = self._runs.get(message["id"])
            begun = self._runs[message["id"]] = RayRun([] if known is None else known.numbers)
            start = Start(**message["start"]) if message["start"] else None
            self.begun.put(Begun(begun, message["values"], start, message["devices"]))
            return {}, begun
        assert run is not None, "a trial of Ray speaks before it begins"
        if message["do"] == "step":
            if run.asked:
                run.orders.put("step")
            run.asked = True
            return run.results.get(), run
        run.orders.put(message["do"])
        return {"trial": run.numbers[-1], "step": run.step} if message["do"] == "save" else {}, run


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    channel: RayChannel


class _Handler(socketserver.StreamRequestHandler):
    server: _Server  # type: ignore[assignment]

    def handle(self) -> None:
        run: RayRun | None = None
        with suppress(OSError):  # Ray may kill an actor at any time
            for line in self.rfile:
                answer, run = self.server.channel.answer(json.loads(line), run)
                self.wfile.write(json.dumps(answer).encode() + b"\n")
        if run is not None:
            run.orders.put("gone")
