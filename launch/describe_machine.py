"""``trireme doctor``: report this machine's software and hardware, what is missing for each parallelism plan, and how
to get it.

Nothing is installed, compiled or changed. Wherever a library can report its own state, that report is used.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import yaml

from ..parallel.usable_cores import usable_cores
from ..trainer.trackers.tracker_library import library_version
from .find_recipes import PACKAGE

State = Literal["ok", "note", "missing"]
GIB = 2**30
LIBRARIES = (
    "torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "hydra-core", "deepspeed",
    "bitsandbytes", "tensorboard", "optuna", "ray",
)  # fmt: skip
OPTIONAL = {
    "deepspeed": "pip install 'trireme-train[deepspeed]' (plans zero0 to zero3)",
    "bitsandbytes": "pip install 'trireme-train[bnb]' (quantised bases, 8-bit optimizers)",
    "tensorboard": "pip install 'trireme-train[tensorboard]'",
    "optuna": "pip install 'trireme-train[optuna]' (trireme search)",
    "ray": "pip install 'trireme-train[ray]' (trireme search with search=ray)",
}
LAUNCHERS = {
    "torchrun": "comes with torch",
    "deepspeed": OPTIONAL["deepspeed"],
    "accelerate": "pip install accelerate",
    "sbatch": "a SLURM cluster's login node has it",
    "mpirun": "only for launchers on MPI: install Open MPI",
    "pdsh": "only for deepspeed with a hostfile: install pdsh and allow ssh between the hosts",
}


@dataclass(frozen=True)
class Finding:
    """One examined item, its state, and how to mend it."""

    about: str
    name: str
    found: str
    state: State = "ok"
    fix: str = ""


def show_findings(as_json: bool) -> None:
    """Examine this machine and print the findings."""
    found = examine()
    if as_json:
        print(json.dumps([asdict(finding) for finding in found], indent=1))
    else:
        show(found)


def examine() -> list[Finding]:
    """All findings, in the order in which they are shown."""
    parts: list[Callable[[], list[Finding]]] = [
        software, trackers, processors, accelerators, backends, network, disks, compilers, launchers, plans,
    ]  # fmt: skip
    return [finding for part in parts for finding in part()]


def show(found: Sequence[Finding]) -> None:
    """Print a table for each subject; the last column says what to do."""
    from .listing import show_table

    marks = {"ok": "", "note": "-", "missing": "x"}
    for about in dict.fromkeys(finding.about for finding in found):
        rows = [(f.name, marks[f.state], f.found, f.fix) for f in found if f.about == about]
        show_table((about, "", "here", "what to do" if any(row[3] for row in rows) else ""), rows)


# -- the examined parts of the machine ------------------------------------------------------------------------


def software() -> list[Finding]:
    found = [Finding("software", "python", platform.python_version())]
    for name in LIBRARIES:
        try:
            found.append(Finding("software", name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            state: State = "note" if name in OPTIONAL else "missing"
            found.append(Finding("software", name, "not installed", state, OPTIONAL.get(name, f"pip install {name}")))
    return found


def trackers() -> list[Finding]:
    """Every tracker of ``tracker=NAME``: the version of its library, or how to install it."""
    from ..trainer.trackers.registry import CLASSES, tracker_class

    found = []
    for cls in map(tracker_class, CLASSES):
        version = library_version(cls.LIBRARY)
        state: State = "note" if version is None else "ok"
        fix = f"pip install {cls.PACKAGE}" if version is None else ""
        found.append(Finding("tracker", cls.KEY, version or "not installed", state, fix))
    return found


def processors() -> list[Finding]:
    import psutil

    from .planning import host_memory

    memory, cores = psutil.virtual_memory(), len(usable_cores())
    found = [
        Finding("processor", "cores", f"{cores} of {os.cpu_count()} may be used by this process"),
        Finding("processor", "memory", f"{memory.total / GIB:.1f} GiB, {memory.available / GIB:.1f} GiB available"),
    ]
    limit = host_memory()
    if limit < memory.total:
        fix = "ask for more where this container or job was started, if a run is ended by SIGKILL"
        found.append(Finding("processor", "memory limit", f"{limit / GIB:.1f} GiB (cgroup)", "note", fix))
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").exists() else 0
    enough = shared >= GIB
    fix = "" if enough else "loader processes pass batches through it: docker run --shm-size=8g, or mount it larger"
    found.append(Finding("processor", "/dev/shm", f"{shared / GIB:.1f} GiB", "ok" if enough else "note", fix))
    files, pinned = resource.getrlimit(resource.RLIMIT_NOFILE)[0], resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    few = files < 4096
    fix = "ulimit -n 65536" if few else ""
    found.append(Finding("processor", "open files", str(files), "note" if few else "ok", fix))
    locked = "unlimited" if pinned == resource.RLIM_INFINITY else f"{pinned / 2**20:.0f} MiB"
    return [*found, Finding("processor", "locked memory", locked)]


def accelerators() -> list[Finding]:
    import torch

    found = []
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        what = f"{about.name}, {about.total_memory / GIB:.0f} GiB, compute capability {about.major}.{about.minor}"
        found.append(Finding("accelerator", f"cuda:{index}", what))
    if torch.xpu.is_available():
        found += [
            Finding("accelerator", f"xpu:{i}", torch.xpu.get_device_name(i)) for i in range(torch.xpu.device_count())
        ]
    if torch.backends.mps.is_available():
        found.append(Finding("accelerator", "mps", "Apple GPU: one process trains on it, several on the CPU"))
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if found:
        return found + ([Finding("accelerator", "CUDA_VISIBLE_DEVICES", hidden)] if hidden is not None else [])
    if hidden is not None:
        what = f"none is seen with CUDA_VISIBLE_DEVICES={hidden!r}: ranks train on the CPU"
        return [Finding("accelerator", "GPU", what, "note", "unset it, or name GPUs that `nvidia-smi -L` lists")]
    if shutil.which("nvidia-smi") is None:
        return [Finding("accelerator", "GPU", "none: ranks train on the CPU", "note")]
    fix = (
        "install a torch built for CUDA" if torch.version.cuda is None else "compare the driver with torch.version.cuda"
    )
    what = f"nvidia-smi is there, but torch {torch.__version__} sees no GPU"
    return [Finding("accelerator", "GPU", what, "missing", fix)]


def backends() -> list[Finding]:
    import torch.distributed as dist

    if not dist.is_available():
        return [Finding("backend", "torch.distributed", "not in this torch", "missing", "install torch from PyPI")]
    there = {"gloo": dist.is_gloo_available(), "nccl": dist.is_nccl_available(), "mpi": dist.is_mpi_available()}
    there["xccl"] = dist.is_xccl_available()
    uses = {"gloo": "CPU ranks, and what ranks agree on", "nccl": "CUDA ranks", "xccl": "Intel GPUs", "mpi": "not used"}
    found = []
    for name, is_there in there.items():
        state: State = "ok" if is_there else ("missing" if name == "gloo" else "note")
        found.append(Finding("backend", name, f"{'there' if is_there else 'not in this torch'} ({uses[name]})", state))
    return found


def network() -> list[Finding]:
    name, device = socket.gethostname(), os.environ.get("GLOO_SOCKET_IFNAME")
    found = [Finding("network", "GLOO_SOCKET_IFNAME", device)] if device else []
    try:
        return [Finding("network", "host name", f"{name} is {socket.gethostbyname(name)}"), *found]
    except OSError:
        fix = f"put {name} into /etc/hosts, or set GLOO_SOCKET_IFNAME (and NCCL_SOCKET_IFNAME) to the network device"
        state: State = "ok" if device else "note"
        return [Finding("network", "host name", f"{name} has no address", state, "" if device else fix), *found]


def disks() -> list[Finding]:
    places = {"working folder": Path.cwd(), "temporary files": Path(os.environ.get("TMPDIR", "/tmp"))}
    found = []
    for name, path in places.items():
        if not path.is_dir():
            found.append(
                Finding("disk", name, f"{path}: no such folder", "missing", "make it, or name another (TMPDIR)")
            )
            continue
        writable, free = os.access(path, os.W_OK), shutil.disk_usage(path).free
        what = f"{path}: {free / GIB:.1f} GiB free{'' if writable else ', not writable'}"
        found.append(Finding("disk", name, what, "ok" if writable else "missing", "" if writable else "choose another"))
    local = sorted(device.name for device in Path("/sys/block").glob("nvme*")) if Path("/sys/block").exists() else []
    fix = "" if local else "offload to NVMe works on any local disk, as fast as that is"
    return [*found, Finding("disk", "NVMe", ", ".join(local) or "none", "ok" if local else "note", fix)]


def compilers() -> list[Finding]:
    found = []
    for name, use, fix in (
        (os.environ.get("CXX", "g++"), "DeepSpeed's operators", "Debian: apt-get install g++"),
        ("ninja", "DeepSpeed's operators", "pip install ninja"),
        ("nvcc", "DeepSpeed's operators for CUDA", "install the CUDA toolkit, if ranks train on GPUs"),
    ):
        path = _program(name)
        there = path is not None
        found.append(
            Finding(
                "compiler",
                name,
                _version(path) if path else f"not found (for {use})",
                "ok" if there else "note",
                "" if there else fix,
            )
        )
    aio = _libaio()
    fix = "" if aio else "Debian: apt-get install libaio-dev (for plan=zero3_nvme)"
    return [*found, Finding("compiler", "libaio", "there" if aio else "not found", "ok" if aio else "note", fix)]


def _libaio() -> bool:
    try:
        from ..parallel.zero.library import import_deepspeed, quiet
        from ..parallel.zero.operators import aio_compatible

        with quiet():
            import_deepspeed()
        return aio_compatible()
    except ImportError:  # without DeepSpeed
        return Path("/usr/include/libaio.h").exists()


def launchers() -> list[Finding]:
    found = []
    for name, fix in LAUNCHERS.items():
        there = _program(name)
        version = _version(there) if there and name in ("sbatch", "mpirun") else there
        found.append(Finding("launcher", name, version or "not found", "ok" if there else "note", "" if there else fix))
    return found


def _program(name: str) -> str | None:
    """Path of a program: beside this Python, or on PATH."""
    return shutil.which(name, path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))


def _version(program: str) -> str:
    """The version line of a program's output: a line with a number, at best with "release" or "version" in it."""
    try:
        said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.TimeoutExpired):
        return program
    numbered = [line for line in said.splitlines() if any(letter.isdigit() for letter in line)]
    telling = [line for line in numbered if re.search("release|version", line, re.IGNORECASE)]
    return next(iter([*telling, *numbered]), program)


# -- requirements of plans ------------------------------------------------------------------------------------


def plans() -> list[Finding]:
    """Every plan of ``configs/plan``: its number of processes, and its requirements that are missing here."""
    found = []
    for file in sorted((PACKAGE / "configs" / "plan").glob("*.yaml")):
        plan: dict[str, Any] = yaml.safe_load(file.read_text()) or {}
        lacks = _lacks(plan)
        state: State = "missing" if lacks else "ok"
        found.append(Finding("plan", file.stem, _processes(plan), state, "; ".join(lacks)))
    return found


def _processes(plan: dict[str, Any]) -> str:
    from ..parallel.plan import AXES

    sizes = [plan.get(axis, 1) for axis in AXES]
    fixed = prod(size for size in sizes if size != "auto")
    if "auto" not in sizes:
        return f"{fixed} process{'es' if fixed > 1 else ''}"
    return f"a multiple of {fixed} processes" if fixed > 1 else "any number of processes"


def _lacks(plan: dict[str, Any]) -> list[str]:
    """Instructions for requirements of a plan that are not installed."""
    if plan.get("data_parallel") != "deepspeed":
        return []
    if importlib.util.find_spec("deepspeed") is None:
        return [OPTIONAL["deepspeed"]]
    from ..parallel.zero.operators import missing_tools

    lacks = [f"install {tool}, with which DeepSpeed compiles its operators" for tool in missing_tools()]
    devices = [plan["deepspeed"].get(part, {}).get("device") for part in ("offload_optimizer", "offload_param")]
    if "nvme" in devices and not _libaio():
        lacks.append("install libaio (Debian: apt-get install libaio-dev)")
    return lacks
