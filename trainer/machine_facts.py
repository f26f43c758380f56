"""Collect the library versions and a description of the machine (host, CPU, memory, GPUs) for the journal of a run."""

from __future__ import annotations

import os
import platform
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from ..parallel.usable_cores import usable_cores
from ..version import __version__

if TYPE_CHECKING:
    import torch

LIBRARIES = ("torch", "transformers", "datasets", "tokenizers", "safetensors", "accelerate", "deepspeed", "peft",
             "bitsandbytes", "numpy")  # fmt: skip
GIB = 2**30


def versions() -> dict[str, str]:
    """Library -> version, of those that are installed."""
    found = {"trireme": __version__, "python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine(device: torch.device) -> dict[str, str]:
    """A description of this machine: host, system, processor, memory, accelerators."""
    import psutil
    import torch

    found = {
        "host": socket.gethostname(),
        "system": f"{platform.system()} {platform.release()}",
        "processor": f"{_processor()}, {len(usable_cores())} of {os.cpu_count()} cores",
        "memory": f"{psutil.virtual_memory().total / GIB:.0f} GiB",
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found["accelerator"] = f"{torch.cuda.device_count()} x {about.name}, {about.total_memory / GIB:.0f} GiB"
        found["CUDA"] = str(torch.version.cuda)
    return found


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()
