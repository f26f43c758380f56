"""The server process that ranks are forked from. It has already imported what ranks need, so that they start fast.

``forked.py`` starts the server and sends it orders. Imports take most of a rank's start, and most of the CPU time of a
short run. The server imports while the command that starts the ranks is still preparing.

The server itself never computes, so it has a single thread, and ranks are forked from a clean process. Each rank is
forked twice, so that it becomes a child of the process that ordered it, which waits for its end.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from setproctitle import getproctitle, setproctitle

from .forked import LENGTH, NEAR_DEVICES, Forked, ForkServer, Order
from .quick_imports import quick_imports

IMPORTS = (
    "trireme.launch.train",
    "trireme.launch.compose",
    "trireme.launch.planning",
    "trireme.configs.schema",
    "trireme.trainer.build",
    "trireme.parallel.apply",
    "trireme.parallel.torch_strategy",
    "transformers.models.auto.modeling_auto",
)
"""Modules that every rank imports."""
HARMLESS = ("jemalloc_bg_thd",)
"""Threads that a fork may leave behind: pyarrow's allocator starts its own again in the new process."""


def serve(connection: socket.socket) -> Order:
    """Fork a process for each order that comes; returns the order in each new process, and never in the server."""
    while True:
        received = _receive(connection)
        if received is None:  # whoever gave orders has ended
            os._exit(0)
        body, files = received
        between = os.fork()
        if between == 0:
            between = os.getpid()
            try:
                if os.fork():
                    os._exit(0)  # now the new process belongs to the one that ordered it
                order = Order(**json.loads(body))
                _become(order, files, between)
                _answer(connection, order)
            except Exception:  # no memory, a missing folder ...: the process that gave the order waits for an answer
                connection.sendall(LENGTH.pack(0))
                os._exit(1)
            return order
        os.waitpid(between, 0)
        for file in files:
            os.close(file)


def _receive(connection: socket.socket) -> tuple[bytes, list[int]] | None:
    head, files, _, _ = socket.recv_fds(connection, LENGTH.size, 3)
    if len(head) < LENGTH.size:
        return None
    left, parts = LENGTH.unpack(head)[0], []
    while left:
        parts.append(connection.recv(left))
        if not parts[-1]:
            return None
        left -= len(parts[-1])
    return b"".join(parts), files


def _become(order: Order, files: Sequence[int], between: int) -> None:
    """Take the session, files, environment, folder and arguments of the order, and new random seeds."""
    while os.getppid() == between:
        time.sleep(0.0005)
    os.setsid()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.folder)
    _find_modules(order)
    sys.argv = [order.entry, *order.arguments]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    random.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()
    _take_threads()
    _show_in_process_list(order)


def _find_modules(order: Order) -> None:
    """Find modules where ``python -m`` does: in the working directory, then in the folders of PYTHONPATH."""
    if not sys.flags.safe_path:
        sys.path[0] = order.folder
    for folder in reversed(order.environment.get("PYTHONPATH", "").split(os.pathsep)):
        if folder and folder not in sys.path:
            sys.path.insert(1, folder)


def _take_threads() -> None:
    """Set torch's threads: OpenMP read its variable in the server, where it may have had another value."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    if "torch" in sys.modules and threads.isdecimal():
        sys.modules["torch"].set_num_threads(max(int(threads), 1))


def _show_in_process_list(order: Order) -> None:
    """Show the command in ``ps`` and to ``pkill -f``, as of a process that was started with it."""
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    setproctitle(f"trireme {rank}python -m {order.entry} {' '.join(order.arguments)}")


def _answer(connection: socket.socket, order: Order) -> None:
    """Send the id of this process to the process that gave the order, which may send it signals from now on."""
    if order.forks:
        ForkServer.current = ForkServer(*_copy(connection))
    connection.sendall(LENGTH.pack(os.getpid()))
    connection.close()


def _copy(connection: socket.socket) -> tuple[socket.socket, Forked]:
    """Fork a server for this process, which has not begun yet; returns the connection to it."""
    ours, theirs = socket.socketpair()
    if pid := os.fork():
        theirs.close()
        return ours, Forked(pid)
    ours.close()
    connection.close()
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    run(serve(theirs))


def run(order: Order) -> NoReturn:
    """Call ``main`` of the ordered module, and end this process as ``python -m`` would."""
    entry = importlib.import_module(order.entry)
    if "RANK" in os.environ:
        from .failures import leave

        leave(entry.main(order.arguments))
    sys.exit(entry.main(order.arguments))


def _import(names: Sequence[str]) -> None:
    """Import modules; for ``module:function``, also call the function. Errors are left to the rank that needs it."""
    with quick_imports():
        for name in names:
            module, _, function = name.partition(":")
            with suppress(Exception):
                imported = importlib.import_module(module)
                if function:
                    getattr(imported, function)()
    gc.freeze()  # a collection in a fork would touch, and so copy, all objects that it shares with the others


def can_fork(near_devices: bool) -> bool:
    """Whether this process may be forked: it has one thread, and no accelerator whose driver would not survive that.

    Args:
        near_devices: there may be an accelerator, as long as this process has not used it.
    """
    import torch

    threads = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    alone = sum(name not in HARMLESS for name in threads) == 1
    return alone and (near_devices or not torch.accelerator.is_available())


def main(arguments: Sequence[str]) -> None:
    """Body of the server.

    Args:
        arguments: the number of the inherited connection, whether it serves beside accelerators, then further modules
            to import.
    """
    from .start_process import prepare_process

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    getproctitle()  # it finds its place in memory before the environment is changed
    prepare_process()
    _import([*IMPORTS, *arguments[2:]])
    if can_fork(arguments[1] == NEAR_DEVICES):
        run(serve(socket.socket(fileno=int(arguments[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
