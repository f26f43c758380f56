"""Process groups that are reused from test to test, which saves the start-up time of new ranks.

The test's function and its arguments must be picklable. A new rank costs more than its fork: the ranks have to connect,
and the first calls of torch, DTensor and DeepSpeed are slow. Reused ranks pay this once for each file of tests. They do
not see what a test changes in its own process, such as patches and environment variables. A test with such changes uses
``run_ranks`` instead.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from helpers.ranks import Answer, describe_rank, free_port, gathered, warm_up
from helpers.zero import load_deepspeed
from trireme.parallel import mesh

CALLS = 30
"""Calls after which new ranks begin, since engines leave groups, threads and memory behind."""
THREADS = 120
"""Threads of a rank above which new ranks begin. Each process group has three, one of which wakes 100 times a second:
with hundreds of groups in eight ranks, two cores do little else."""


class KeptRanks:
    """Called as ``run_ranks`` is. Groups start when they are first needed; one in which a rank failed is ended."""

    def __init__(self) -> None:
        self.groups: dict[int, _Group] = {}

    def __call__(self, function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
        """``function(*args)`` on every rank; returns what each returned, in rank order.

        Raises:
            AssertionError: a rank failed, or the ranks did not finish in ``timeout`` seconds.
        """
        group = self.groups.get(world_size) or self.groups.setdefault(world_size, _Group(world_size))
        try:
            results = group.run(function, args, timeout)
        except BaseException:
            self.groups.pop(world_size).end()
            raise
        if group.calls == CALLS or group.threads() > THREADS:
            self.groups.pop(world_size).end()
        return results

    def end(self) -> None:
        """End all groups; conftest.py calls this after each test file."""
        for group in self.groups.values():
            group.end()
        self.groups.clear()


class _Group:
    """Ranks of one process group."""

    def __init__(self, world_size: int) -> None:
        self.calls = 0
        warm_up()
        load_deepspeed()
        context, port = multiprocessing.get_context("fork"), free_port()
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            given = (rank, world_size, port, theirs, [*self.pipes, ours])
            process = context.Process(target=_serve, args=given, daemon=True)
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, function: Callable[..., Any], args: tuple, timeout: float) -> list[Any]:
        self.calls += 1
        for pipe in self.pipes:
            pipe.send((function, args))
        return gathered(self.pipes, timeout)

    def threads(self) -> int:
        """Threads of the rank that has most."""
        return max(len(os.listdir(f"/proc/{process.pid}/task")) for process in self.processes)

    def end(self) -> None:
        for process in self.processes:
            process.kill()
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            process.join()
            pipe.close()


def _serve(rank: int, world_size: int, port: int, pipe: Connection, parents: list[Connection]) -> None:
    """Body of a rank. Its process group is never destroyed, since engines keep references to it."""
    for end in parents:
        end.close()
    gc.freeze()
    describe_rank(rank, world_size, port)
    torch.distributed.destroy_process_group = mesh.destroy_process_group = lambda *_: None
    try:
        while True:
            function, args = pipe.recv()
            try:
                answer = Answer(rank, time.monotonic(), function(*args))
            except BaseException:
                answer = Answer(rank, time.monotonic(), failure=f"failed:\n{traceback.format_exc()}")
            pipe.send(answer)
            del answer, function, args
    except (EOFError, OSError):  # the tests have ended
        os._exit(0)


kept_ranks = KeptRanks()
"""The process groups that the tests of this process share."""
