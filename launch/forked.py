"""Start processes fast, by forking them from a server process (``fork_server.py``), and wait for their end.

A forked process is a child of this process, as if ``subprocess`` had started it, and has its own session. This works on
Linux only; elsewhere, and where a server cannot fork, the caller starts processes in the usual way.
"""

from __future__ import annotations

import atexit
import ctypes
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

SET_CHILD_SUBREAPER = 36
"""Option of Linux's prctl: orphans among the descendants of this process become its children."""
LIBRARIES = ("DS_", "HF_", "PYTHON", "PYTORCH_", "TORCH_", "TRANSFORMERS_")
READ_AT_IMPORT = ("CUDA_", "GOMP_", "KMP_", "LD_", "MKL_", *LIBRARIES)
"""Beginnings of variables that libraries read when they are imported: a process that is given other values than the
server had is not forked."""
SET_FOR_RANKS = ("PYTHONPATH", "PYTORCH_NVML_BASED_CUDA_CHECK", "TORCH_NCCL_ASYNC_ERROR_HANDLING")
"""Such variables that take effect in a forked process, too. DeepSpeed sets one of them when it is imported."""
DEVICES = ("/dev/nvidia0", "/dev/kfd")
"""Files of accelerators, whose drivers do not survive a fork."""


NEAR_DEVICES = "near-devices"
"""Argument of a server that also forks on a machine with accelerators."""
LENGTH = struct.Struct("!I")
"""Length of an order, and number of a process (0: there is none)."""
WAIT = 300.0
"""Most seconds for an answer, with the imports before the first one."""


@dataclass(frozen=True)
class Order:
    """The program that a forked process runs, with its environment."""

    entry: str
    """Module whose ``main(arguments)`` is called; it returns the exit code."""
    arguments: list[str]
    environment: dict[str, str]
    """All environment variables."""
    folder: str
    """Working directory."""
    forks: bool = False
    """Whether it may start ranks and is given a server of its own, which is a copy of this one."""


class CannotFork(Exception):
    """The process must be started in the usual way."""


class ForkServer:
    """Connection to a server that forks processes."""

    current: ClassVar[ForkServer | None] = None
    """The server of this process. Jobs of a sweep share it."""

    def __init__(self, connection: socket.socket, process: subprocess.Popen[Any] | Forked) -> None:
        self.connection, self.process, self.owner = connection, process, os.getpid()
        connection.settimeout(WAIT)
        self.environment = _read_at_import(os.environ)
        ctypes.CDLL(None).prctl(SET_CHILD_SUBREAPER, 1)
        atexit.register(self.end)

    @classmethod
    def start(cls, imports: Sequence[str] = (), near_devices: bool = False) -> None:
        """Start a server for this process, unless it has one or cannot have one. It begins its imports at once.

        Args:
            imports: what ranks import beside the usual, as ``module`` or ``module:function``.
            near_devices: also on a machine with accelerators; then no import may touch their driver.
        """
        if cls.current is not None or sys.platform != "linux":
            return
        if not near_devices and any(Path(file).exists() for file in DEVICES):
            return
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-u", "-m", "trireme.launch.fork_server", str(theirs.fileno())]
            command += [NEAR_DEVICES if near_devices else "-", *imports]
            options: Any = {"pass_fds": [theirs.fileno()], "stdin": subprocess.DEVNULL, "start_new_session": True}
            cls.current = cls(ours, subprocess.Popen(command, **options))

    def fork(self, order: Order, files: Sequence[int] = (0, 1, 2)) -> int:
        """Have ``order`` run by a new process; returns its number.

        Args:
            files: its standard input, output and error.

        Raises:
            CannotFork: the server is gone, has imported with other variables, or could not become this process.
        """
        if _read_at_import(order.environment) != self.environment:
            raise CannotFork
        body = json.dumps(asdict(order)).encode()
        try:
            socket.send_fds(self.connection, [LENGTH.pack(len(body))], files)
            self.connection.sendall(body)
            answer = self.connection.recv(LENGTH.size, socket.MSG_WAITALL)
        except OSError:
            answer = b""
        if len(answer) < LENGTH.size:
            self.end()
            raise CannotFork
        if not (pid := LENGTH.unpack(answer)[0]):
            raise CannotFork
        return pid

    def end(self) -> None:
        """End the server. Processes that it has forked go on."""
        if self.owner != os.getpid():
            return  # a copy of this object in a forked process
        self.connection.close()
        self.process.send_signal(signal.SIGKILL)  # while it imports, it would not notice that the connection is closed
        self.process.wait()
        if ForkServer.current is self:
            ForkServer.current = None


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_IMPORT) and name not in SET_FOR_RANKS
    }


class Forked:
    """A forked process, with the part of ``subprocess.Popen`` that torch's launcher uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """Exit code, or minus the number of the signal that ended it; None while it runs."""

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        if self.returncode is None:
            with suppress(ChildProcessError):
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, once it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not ended after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


def forked(
    command: Sequence[str],
    environment: Mapping[str, str],
    files: Sequence[int],
    folder: str | None = None,
    forks: bool = False,
) -> Forked | None:
    """``python -u -m MODULE ARGUMENTS`` in a forked process; None if it must be started in the usual way.

    Args:
        files: standard input, output and error.
        folder: working directory; None takes that of this process.
        forks: whether it starts ranks, which it then has forked as well.
    """
    server = ForkServer.current
    if server is None or list(command[:3]) != [sys.executable, "-u", "-m"]:
        return None
    entry, *arguments = command[3:]
    try:
        return Forked(server.fork(Order(entry, arguments, dict(environment), folder or os.getcwd(), forks), files))
    except CannotFork:
        return None
