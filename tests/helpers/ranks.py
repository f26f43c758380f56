"""Start ranks on the CPU (processes that communicate by gloo), run a function on each, and collect what they return.
They are forked after the imports, so a rank starts in a tenth of a second.
"""

from __future__ import annotations

import functools
import gc
import importlib
import multiprocessing
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count, islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

from helpers.recipes import tiny_recipe

FAMILIES = ("gpt2", "gpt_neox", "llama", "persimmon")
IMPORTED = (
    "datasets",
    "torch.distributed.pipelining",
    "transformers.generation.utils",
    *(f"transformers.models.{family}.modeling_{family}" for family in FAMILIES),
    "trireme.parallel.apply",
    "trireme.parallel.pipeline.pipeline_strategy",
    "trireme.trainer.build",
)
"""Modules that every rank needs. They are imported once, before ranks are forked."""
FIRST_PORT, PORTS, WORKERS = 10_000, 500, 4
"""First port, ports per pytest-xdist worker, and number of workers. All ports are below those at which the ranks of
SLURM jobs meet, and below those that the system gives to programs that ask for any port, as gloo does."""


class Answer(NamedTuple):
    """How a rank has ended."""

    rank: int
    at: float
    """Monotonic seconds, which are the same in all processes."""
    value: Any = None
    failure: str = ""


def _own_ports() -> Iterator[int]:
    """Ports of this worker, in an endless cycle; two test sessions on one machine begin at different ones."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    first = FIRST_PORT + worker % WORKERS * PORTS
    for number in count(os.getpid()):
        yield first + number % PORTS


_ports = _own_ports()


def free_port() -> int:
    """A port that nobody listens on, and that no other test takes before the caller does."""
    for port in islice(_ports, PORTS):
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("", port))
            return port
    raise AssertionError("no free port")


@functools.cache
def warm_up() -> None:
    """Do before the first fork what every rank would repeat. It takes half of the time of a short run."""
    for name in IMPORTED:
        importlib.import_module(name)
    tiny_recipe(Path("unused"))  # Hydra's imports, and the tables that its parser fills as it reads


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """``function(*args)`` on every rank of a new process group; returns what each rank returned, in rank order.

    Raises:
        AssertionError: a rank failed (with the traceback of the first that did), or the ranks did not finish in
            ``timeout`` seconds.
    """
    warm_up()
    context = multiprocessing.get_context("fork")
    port = free_port()
    pipes, processes = [], []
    for rank in range(world_size):
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=_rank, args=(function, args, rank, world_size, port, send), daemon=True)
        process.start()
        send.close()
        pipes.append(receive)
        processes.append(process)
    try:
        return gathered(pipes, timeout)
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()


def _rank(function: Callable[..., Any], args: tuple, rank: int, world_size: int, port: int, send: Connection) -> None:
    gc.freeze()  # else each garbage collection would touch, and so copy, all inherited memory
    describe_rank(rank, world_size, port)
    try:
        value = function(*args)
        send.send(Answer(rank, time.monotonic(), value))
    except BaseException:
        send.send(Answer(rank, time.monotonic(), failure=f"failed:\n{traceback.format_exc()}"))
    finally:
        send.close()
        os._exit(0)  # skip destructors of inherited objects


def describe_rank(rank: int, world_size: int, port: int) -> None:
    """Set the environment variables that tell a process its rank and group, as launchers do."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )


def gathered(pipes: Sequence[Connection], timeout: float) -> list[Any]:
    """The results of all ranks. The first failure ends the wait, since its peers hang or lose their connection."""
    silent, values = {pipe: rank for rank, pipe in enumerate(pipes)}, {}
    deadline = time.monotonic() + timeout
    while silent:
        ready = wait(list(silent), max(deadline - time.monotonic(), 0.0))
        assert ready, f"ranks {sorted(silent.values())} did not finish in {timeout} s"
        answers = [_answer(silent.pop(pipe), pipe) for pipe in ready]
        failed = sorted((answer for answer in answers if answer.failure), key=lambda answer: answer.at)
        assert not failed, "\n".join(f"rank {answer.rank} {answer.failure}" for answer in failed)
        values.update((answer.rank, answer.value) for answer in answers)
    return [values[rank] for rank in range(len(pipes))]


def _answer(rank: int, pipe: Connection) -> Answer:
    try:
        return pipe.recv()
    except EOFError:
        return Answer(rank, time.monotonic(), failure="ended without a word")
