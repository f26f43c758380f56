"""Create the process group of all ranks from environment variables, and destroy it at the end. If the ranks cannot
train together, an error says why.

torch alone would wait for as long as its timeout in training and then show a C++ traceback. If ranks disagreed on the
world size, it would wait for ever. Here the ranks first compare their settings through the store alone, with a shorter
timeout.
"""

from __future__ import annotations

import datetime
import os
import sys
from contextlib import suppress
from itertools import count
from typing import Any, NoReturn

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from ..errors import Problem, UserError

GO = "go"
LAST_WORD = datetime.timedelta(seconds=30)
"""How long rank 0, which serves the store, waits until the others have read the reason of a failure."""
_stores: dict[tuple[object, ...], tuple[dist.Store, count[int]]] = {}
"""Stores of this process by process, address and number of ranks, each with the number of its next group. A store
stays open after its group has ended: a rank that joins again (to predict after training) may come before rank 0 has
closed the old store, and would then wait at a store that nobody serves."""


def join_process_group(
    rank: int,
    world_size: int,
    backend: str,
    timeout: datetime.timedelta,
    patience: datetime.timedelta,
    accelerator: str = "",
) -> None:
    """Create the process group of all ranks, through the store at MASTER_ADDR and MASTER_PORT.

    Args:
        timeout: how long a rank waits for the others in training.
        patience: how long a rank waits for the others here.
        accelerator: identity of this rank's accelerator; empty on the CPU.

    Raises:
        UserError: the address does not answer, the port is taken, ranks are missing, ranks disagree on their number, or
            two have the same accelerator.
    """
    try:
        store = _new_part(rank, world_size, patience)
        store.set_timeout(patience)
        refusal = _compare_settings(store, rank, world_size, accelerator)
    except (dist.DistNetworkError, dist.DistStoreError, ValueError) as error:
        _explain(error, rank, world_size, patience)
    if refusal:
        fix = "start every host with the same number of ranks, and not more than it has GPUs (see CUDA_VISIBLE_DEVICES)"
        raise UserError(Problem("WORLD_SIZE", refusal, fix, world_size))
    store.set_timeout(timeout)
    dist.init_process_group(backend, timeout=timeout, store=store, rank=rank, world_size=world_size)


def _new_part(rank: int, world_size: int, patience: datetime.timedelta) -> dist.Store:
    """A part of the ranks' store that no earlier group has used, since its keys must not be read again.

    torch's elastic agent has one store for all attempts, and a process has one for all the groups that it joins.
    """
    place = os.getpid(), os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT"), world_size
    if place not in _stores:
        store, _, _ = next(iter(rendezvous("env://", rank, world_size, timeout=patience)))
        _stores[place] = store, count()
    store, groups = _stores[place]
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"attempt_{attempt}/group_{next(groups)}", store)


def _compare_settings(store: dist.Store, rank: int, world_size: int, accelerator: str) -> str:
    """Let rank 0 compare the settings of all ranks; returns why they cannot train together, or an empty string."""
    store.set(f"rank/{rank}", f"{world_size} {accelerator}")
    if rank == 0:
        said = _why_not([store.get(f"rank/{peer}").decode() for peer in range(world_size)])
        store.set(GO, said or GO)
        if said:  # the store ends with this process, so the others must read from it first
            with suppress(dist.DistError):
                store.wait([f"heard/{peer}" for peer in range(1, world_size)], LAST_WORD)
        return said
    said = store.get(GO).decode()
    if said != GO:
        store.set(f"heard/{rank}", GO)
    return "" if said == GO else said


def _why_not(told: list[str]) -> str:
    """The reason why ranks cannot train together, from ``WORLD_SIZE ACCELERATOR`` of each rank; empty if they can."""
    first_with: dict[str, int] = {}
    for rank, (size, _, accelerator) in enumerate(text.partition(" ") for text in told):
        if int(size) != len(told):
            return f"ranks disagree: {len(told)} on rank 0, {size} on rank {rank}"
        if accelerator and first_with.setdefault(accelerator, rank) != rank:
            return f"ranks {first_with[accelerator]} and {rank} both have {accelerator}: each needs its own"
    return ""


def _explain(error: Exception, rank: int, world_size: int, patience: datetime.timedelta) -> NoReturn:
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    within = f"within {patience.total_seconds():g} s (trainer.join_minutes)"
    text = str(error)
    if not host or not port:
        missing = "MASTER_PORT" if host else "MASTER_ADDR"
        problem = Problem(missing, "is not set, though RANK and WORLD_SIZE are", "use a launcher, or set it", "")
    elif "EADDRINUSE" in text or "already in use" in text:
        problem = Problem(
            "MASTER_PORT", "is in use on this host", "choose another, or end the process that uses it", port
        )
    elif rank == 0 or "wait timeout" in text:
        why = f"not all {world_size} ranks joined {within}"
        fix = f"start the other hosts too, with MASTER_ADDR={host} MASTER_PORT={port}, each rank once"
        problem = Problem("WORLD_SIZE", why, fix, world_size)
    else:
        why = f"does not answer on port {port} {within}"
        fix = "start rank 0 there; check that its host name resolves and that its firewall lets the port through"
        problem = Problem("MASTER_ADDR", why, fix, host)
    raise UserError(problem) from error


def destroy_process_group() -> None:
    """Destroy the default group and all others, so that this process can join another one."""
    # DeepSpeed's own function also clears what DeepSpeed keeps of the groups; it has none before its first engine.
    comm: Any = sys.modules.get("deepspeed.comm.comm")
    (dist if comm is None or comm.cdb is None else comm).destroy_process_group()
