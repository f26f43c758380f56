"""The device of a rank, the communication backend for such devices, and the CPU cores that a rank runs on."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.distributed as dist

from ..errors import Problem, UserError

NUMA_NODES = Path("/sys/devices/system/node")


def local_device() -> torch.device:
    """The accelerator of this process by LOCAL_RANK (CUDA, XPU; MPS for one process), else the CPU.

    Which of them are seen, and in which order, is the driver's business: CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER. One
    that is seen alone is taken by whatever rank sees it: SLURM may give each task its own (``--gpus-per-task=1``).

    Raises:
        UserError: more ranks than accelerators on this machine.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None or (found.type == "mps" and int(os.environ.get("WORLD_SIZE", "1")) > 1):
        return torch.device("cpu")
    count, index = torch.accelerator.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    index = 0 if count == 1 else index
    if index >= count:
        why = f"is too many for {count} visible device(s) of type {found.type}: each rank wants its own"
        fix = f"start at most {count} rank(s) here (see CUDA_VISIBLE_DEVICES)"
        raise UserError(Problem("LOCAL_RANK", why, fix, index))
    torch.accelerator.set_device_index(index)
    return torch.device(found.type, index)


def identity_of(device: torch.device) -> str:
    """Identifier of an accelerator, that two ranks must not share; empty on the CPU, which they do share."""
    if device.type not in ("cuda", "xpu"):
        return ""
    about = getattr(torch, device.type).get_device_properties(device)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # parts of one GPU (MIG) may have the same identifier
    return f"{device} of {os.uname().nodename} ({getattr(about, 'uuid', about.name)}; visible: {visible or 'all'})"


def backend_of(device: torch.device) -> str:
    """NCCL for CUDA, XCCL for XPU, and gloo beside it: decisions and counts are agreed on without touching the stream
    of an accelerator."""
    if device.type == "cpu":
        return "gloo"
    return f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"


def bind_cores(rank: int, gather: Callable[[object], list]) -> list[int]:
    """Keep this process, its threads and what it starts on its share of the cores that it may use; a collective call.

    Cores are shared by the ranks of a machine that may use the same ones: what SLURM, or a launcher, has bound to a
    rank already stays its own.

    Args:
        gather: from what each rank gives, what all have given.

    Returns:
        The cores.
    """
    may_use = os.sched_getaffinity(0)
    mine = os.uname().nodename, sorted(may_use)
    sharers = [other for other, theirs in enumerate(gather(mine)) if theirs == mine]
    cores = share(by_numa_node(may_use), sharers.index(rank), len(sharers))
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(cores))
    return cores


def share(cores: Sequence[int], rank: int, ranks: int) -> list[int]:
    """Neighbouring cores for one rank, equally many for each; where cores are fewer than ranks, several ranks get the
    same core."""
    size = max(len(cores) // ranks, 1)
    start = rank % max(len(cores) // size, 1) * size
    return list(cores[start : start + size])


def by_numa_node(cores: set[int]) -> list[int]:
    """Cores of one memory node beside each other."""
    node_of = {}
    for node in NUMA_NODES.glob("node[0-9]*"):
        for part in (node / "cpulist").read_text().strip().split(","):
            first, _, last = part.partition("-")
            if first:
                node_of.update(dict.fromkeys(range(int(first), int(last or first) + 1), int(node.name[4:])))
    return sorted(cores, key=lambda core: (node_of.get(core, 0), core))
