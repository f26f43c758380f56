"""Start a trireme command by forking a process that has already imported everything, which saves seconds.

The forked command has a fork server of its own, from which its ranks are forked. Two kinds of command are started as a
new process instead: those of other programs, and those whose environment variables are read at import time.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from helpers.ranks import IMPORTED
from trireme.launch.forked import Forked, ForkServer, forked

FURTHER = ("trireme.launch.cli", "trireme.parallel.zero.library:import_deepspeed", "trireme.parallel.fsdp")


class Started:
    """A forked command, with the part of ``subprocess.Popen`` that tests use. Its output goes into files."""

    def __init__(self, process: Forked, arguments: Sequence[str], files: Sequence[str]) -> None:
        self.process, self.args, self.files = process, arguments, files
        self.poll, self.wait, self.send_signal = process.poll, process.wait, process.send_signal

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def returncode(self) -> int | None:
        return self.process.returncode

    def kill(self) -> None:
        self.send_signal(9)

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end; returns what it wrote to standard output and error."""
        self.wait(timeout)
        output, errors = (Path(file).read_text(errors="replace") for file in self.files)
        return output, errors


def start(
    arguments: Sequence[str], environment: Mapping[str, str], folder: Path | None = None
) -> Started | subprocess.Popen[str]:
    """Start a command in a session of its own, with its output captured."""
    module = [arguments[0], "-u", *arguments[1:]] if arguments[1:2] == ["-m"] else arguments
    if list(module[2:4]) == ["-m", "trireme.launch.cli"]:
        ForkServer.start([*FURTHER, *IMPORTED])
        names = [_new_file(), _new_file()]
        with open(os.devnull) as nothing, open(names[0], "w") as output, open(names[1], "w") as errors:
            files = (nothing.fileno(), output.fileno(), errors.fileno())
            process = forked(module, environment, files, str(folder or Path.cwd()), forks=True)
        if process is not None:
            return Started(process, arguments, names)
    return subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(environment),
        cwd=folder,
        start_new_session=True,
    )


def _new_file() -> str:
    file, name = tempfile.mkstemp(prefix="trireme_command_")
    os.close(file)
    return name
