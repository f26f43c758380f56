"""The process that trials are forked from: it has imported everything once, so a trial starts within milliseconds.

It has one thread and no GPU in use, so that its children may use both. It reads requests as lines of JSON from standard
input, and writes what becomes of them to standard output: ``{"id", "pid"}`` at the start of a trial, and at its end
``{"id", "status"}`` (negative: the number of the signal that ended it). Trials end with this process, and this process
ends with the search.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import selectors
import signal
import sys
from contextlib import suppress
from typing import Any

IMPORTED = (
    "datasets",
    "transformers.generation.utils",
    "torch.distributed.elastic.multiprocessing.errors",
    "torch.distributed.launcher",
    "torch.distributed.pipelining",
    "trireme.launch.fork",
    "trireme.launch.search.trial_process",
    "trireme.parallel.apply",
    "trireme.trainer.build",
)
"""Modules that a trial or its ranks would import, each for itself."""


def main() -> None:
    """Serve until standard input is closed."""
    end_with(int(sys.argv[1]))
    requests, answers = os.dup(0), os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)  # what libraries print must not stand among the answers
    _warm_up(json.loads(sys.argv[2]))
    TrialServer(requests, answers).serve()


def end_with(parent: int) -> None:
    """Have Linux kill this process when its parent dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)


class TrialServer:
    """Forks trials on request.

    Args:
        requests, answers: file descriptors.
    """

    def __init__(self, requests: int, answers: int) -> None:
        self.requests, self.answers = requests, answers
        self._trials: dict[int, int] = {}  # id of a request by process
        self._waker = os.pipe()
        for end in self._waker:
            os.set_blocking(end, False)

    def serve(self) -> None:
        """Answer requests until there are no more."""
        signal.set_wakeup_fd(self._waker[1])
        signal.signal(signal.SIGCHLD, lambda number, frame: None)  # wakes the selector below
        waiting = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.requests, selectors.EVENT_READ)
            selector.register(self._waker[0], selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    data = b""
                    with suppress(BlockingIOError):
                        data = os.read(key.fd, 65536)
                    if key.fd != self.requests:
                        continue
                    if not data:
                        return
                    *lines, waiting = (waiting + data).split(b"\n")
                    for line in lines:
                        self._act(json.loads(line))
                self._reap()

    def _act(self, request: dict[str, Any]) -> None:
        if "signal" in request:
            for pid, one in self._trials.items():
                if one == request["id"]:
                    os.kill(pid, request["signal"])
            return
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            self._be_a_trial(request, server)
        self._trials[pid] = request["id"]
        self._say({"id": request["id"], "pid": pid})

    def _reap(self) -> None:
        while self._trials:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            self._say({"id": self._trials.pop(pid, -1), "status": os.waitstatus_to_exitcode(status)})

    def _say(self, answer: dict[str, Any]) -> None:
        os.write(self.answers, json.dumps(answer).encode() + b"\n")

    def _be_a_trial(self, request: dict[str, Any], server: int) -> None:
        code = 1
        try:
            end_with(server)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for descriptor in (self.requests, self.answers, *self._waker):
                os.close(descriptor)
            from .trial_process import run_trial

            run_trial(request)
            code = 0
        finally:
            with suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)


def _warm_up(request: dict[str, Any]) -> None:
    """Import what trials need, and read the recipe once, which fills the tables of Hydra and its parser. What fails
    here fails again in the trial, where it is reported."""
    from ..enter import prepare_process
    from ..quick_imports import quick_imports

    prepare_process()
    with quick_imports(), suppress(Exception):
        for name in IMPORTED:
            importlib.import_module(name)
        from .trial_process import read_trial

        read_trial(request)


if __name__ == "__main__":
    main()
