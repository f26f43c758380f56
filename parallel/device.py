"""Choose the device of a rank, its communication backend, and the CPU cores that it runs on."""

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

    The driver decides which accelerators are visible and in which order (CUDA_VISIBLE_DEVICES, CUDA_DEVICE_ORDER). A
    rank that sees a single one takes it, because SLURM may give each task its own (``--gpus-per-task=1``).

    Raises:
        UserError: this machine has more ranks than accelerators.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if found is None or (found.type == "mps" and int(os.environ.get("WORLD_SIZE", "1")) > 1):
        return torch.device("cpu")
    count, index = torch.accelerator.device_count(), int(os.environ.get("LOCAL_RANK", "0"))
    index = 0 if count == 1 else index
    if index >= count:
        why = f"is too many for {count} visible device(s) of type {found.type}: each rank needs its own"
        fix = f"start at most {count} rank(s) here (see CUDA_VISIBLE_DEVICES)"
        raise UserError(Problem("LOCAL_RANK", why, fix, index))
    torch.accelerator.set_device_index(index)
    return torch.device(found.type, index)


def identity_of(device: torch.device) -> str:
    """Identifier of an accelerator, which two ranks must not share; empty for the CPU, which they may share."""
    if device.type not in ("cuda", "xpu"):
        return ""
    about = getattr(torch, device.type).get_device_properties(device)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")  # tells parts of one GPU (MIG) apart, whose uuid may be equal
    return f"{device} of {os.uname().nodename} ({getattr(about, 'uuid', about.name)}; visible: {visible or 'all'})"


def backend_of(device: torch.device) -> str:
    """NCCL for CUDA or XCCL for XPU, with gloo beside it for decisions and counts, which must not wait for the
    accelerator's stream."""
    if device.type == "cpu":
        return "gloo"
    return f"cpu:gloo,{device.type}:{dist.get_default_backend_for_device(device)}"


def bind_cores(rank: int, gather: Callable[[object], list]) -> list[int]:
    """Bind this process, its threads and its children to its share of the available cores; a collective call.

    Cores are divided among the ranks of a machine that may use the same ones. A rank that SLURM or a launcher has bound
    to cores of its own keeps these.

    Args:
        gather: collects one value from each rank and returns all of them, in rank order.

    Returns:
        The cores of this process.
    """
    may_use = os.sched_getaffinity(0)
    mine = os.uname().nodename, sorted(may_use)
    sharers = [other for other, theirs in enumerate(gather(mine)) if theirs == mine]
    cores = core_share(by_numa_node(may_use), sharers.index(rank), len(sharers))
    for thread in Path("/proc/self/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(cores))
    return cores


def core_share(cores: Sequence[int], rank: int, ranks: int) -> list[int]:
    """Neighbouring cores for one rank, as many as for every other; ranks share cores if there are too few."""
    size = max(len(cores) // ranks, 1)
    start = rank % max(len(cores) // size, 1) * size
    return list(cores[start : start + size])


def by_numa_node(cores: set[int]) -> list[int]:
    """The cores, ordered so that those of one NUMA node are neighbours."""
    node_of = {}
    for node in NUMA_NODES.glob("node[0-9]*"):
        for part in (node / "cpulist").read_text().strip().split(","):
            first, _, last = part.partition("-")
            if first:
                node_of.update(dict.fromkeys(range(int(first), int(last or first) + 1), int(node.name[4:])))
    return sorted(cores, key=lambda core: (node_of.get(core, 0), core))
