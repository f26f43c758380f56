"""Start a command, wait for its training steps, send it signals, and check that it leaves no process behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from helpers.started import start


def until(condition: Callable[[], bool], seconds: float = 120) -> None:
    """Wait until a condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


class Running:
    """A started command with its ranks."""

    def __init__(self, arguments: Sequence[str], run_dir: Path, environment: dict[str, str] | None = None) -> None:
        kept = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
        self.run_dir = run_dir
        self.process = start(arguments, {**kept, **(environment or {})})
        self.seen: set[psutil.Process] = set()

    def wait_for_lines(self, count: int, timeout: float = 240, pause: float = 0.02) -> None:
        """Wait until the run has logged ``count`` lines."""
        metrics = self.run_dir / "metrics.jsonl"
        deadline = time.monotonic() + timeout
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= count):
            assert self.process.poll() is None, f"it ended first: {self.process.communicate()}"
            assert time.monotonic() < deadline, "it does not come that far"
            time.sleep(pause)

    @property
    def ranks(self) -> list[psutil.Process]:
        """Processes that train, by rank."""
        found = {}
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                rank = _rank_of(child)
                if rank is not None and child.ppid() == self.process.pid:
                    found[int(rank)] = child
        self.seen.update(found.values())
        return [found[rank] for rank in sorted(found)]

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def end(self, timeout: float = 280) -> subprocess.CompletedProcess[str]:
        """Wait for the end, and assert that no rank is left."""
        output, errors = self.process.communicate(timeout=timeout)
        _, alive = psutil.wait_procs(self.seen, timeout=10)
        assert not [rank for rank in alive if rank.status() != psutil.STATUS_ZOMBIE], "ranks were left behind"
        return subprocess.CompletedProcess(self.process.args, self.process.returncode, output, errors)


def _rank_of(process: psutil.Process) -> str | None:
    """Number of a rank; None for any other process. A forked rank has it in its name, not in its environment."""
    forked = re.match(r"trireme rank (\d+):", " ".join(process.cmdline()))
    return forked[1] if forked else process.environ().get("RANK")


@contextmanager
def running(arguments: Sequence[str], run_dir: Path, environment: dict[str, str] | None = None) -> Iterator[Running]:
    """Context with a started command. Its processes that are left at the end are killed."""
    started = Running(arguments, run_dir, environment)
    try:
        yield started
    finally:
        left = set(started.seen)
        if started.process.poll() is None:
            left |= set(psutil.Process(started.process.pid).children(recursive=True))
            started.process.kill()
        for rank in left:
            with suppress(psutil.Error):
                rank.kill()
        started.process.communicate()


def run_to_end(
    arguments: Sequence[str], run_dir: Path, environment: dict[str, str] | None = None, timeout: float = 280
) -> subprocess.CompletedProcess[str]:
    """Run a command that starts processes of its own. None of them is left, even if it does not end in time."""
    with running(arguments, run_dir, environment) as run:
        return run.end(timeout)
