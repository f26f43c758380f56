"""Start real gloo ranks on the CPU: forked after the imports, so that a rank costs a tenth of a second."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from typing import Any

import datasets  # noqa: F401  (a second of imports that every rank would pay for by itself)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_ranks(function: Callable[..., Any], world_size: int, *args: Any, timeout: float = 120.0) -> list[Any]:
    """``function(*args)`` on every rank of a new process group; returns what each rank returned, in rank order.

    Raises:
        AssertionError: a rank failed (with its traceback), or did not finish in ``timeout`` seconds.
    """
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
        results = [_result(rank, pipe, timeout) for rank, pipe in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
    return results


def _rank(function: Callable[..., Any], args: tuple, rank: int, world_size: int, port: int, send: Any) -> None:
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world_size),
        LOCAL_WORLD_SIZE=str(world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    try:
        send.send((True, function(*args)))
    except BaseException:
        send.send((False, traceback.format_exc()))
    finally:
        send.close()
        os._exit(0)  # no destructors of what was inherited by the fork


def _result(rank: int, pipe: Any, timeout: float) -> Any:
    assert pipe.poll(timeout), f"rank {rank} did not finish in {timeout} s"
    try:
        succeeded, value = pipe.recv()
    except EOFError:
        raise AssertionError(f"rank {rank} ended without a word") from None
    assert succeeded, f"rank {rank} failed:\n{value}"
    return value
