"""Measure the CPU, memory, network and GPU usage of the main rank's machine and process, for trackers to report.

Other ranks are not measured: ``system/cpu_percent`` and ``system/memory_percent`` are of the machine,
``system/process_cpu_percent`` (100 is one core) and ``system/process_memory_mib`` of the process. Network traffic is
counted since the previous measurement. For a CUDA device there are its memory and, if its driver's library
(nvidia-ml-py) is installed, its utilisation, power and temperature.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

MIB = 2**20


class SystemFigures:
    """Measures the machine; rates refer to the time since the previous measurement."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._process = device, psutil.Process()
        psutil.cpu_percent()  # the first call only sets the beginning
        self._process.cpu_percent()
        self._then, self._bytes = time.monotonic(), _network_bytes()

    def look(self) -> dict[str, float]:
        """Numbers by tag."""
        now, sent = time.monotonic(), _network_bytes()
        seconds = max(now - self._then, 1e-9)
        found = {
            "cpu_percent": psutil.cpu_percent(),
            "memory_percent": psutil.virtual_memory().percent,
            "process_cpu_percent": self._process.cpu_percent(),
            "process_memory_mib": self._process.memory_info().rss / MIB,
            "process_threads": self._process.num_threads(),
            "network_mib_per_second": (sent - self._bytes) / seconds / MIB,
        }
        self._then, self._bytes = now, sent
        if self._device.type == "cuda":
            found |= _of_gpu(self._device)
        return {f"system/{name}": float(value) for name, value in found.items()}


def _network_bytes() -> int:
    counters = psutil.net_io_counters()
    return counters.bytes_sent + counters.bytes_recv if counters else 0


def _of_gpu(device: torch.device) -> dict[str, float]:
    import torch

    free, total = torch.cuda.mem_get_info(device)
    found = {
        "gpu_memory_percent": 100 * (total - free) / total,
        "gpu_allocated_mib": torch.cuda.memory_allocated(device) / MIB,
        "gpu_reserved_mib": torch.cuda.memory_reserved(device) / MIB,
    }
    try:
        found["gpu_percent"] = torch.cuda.utilization(device)
        found["gpu_watts"] = torch.cuda.power_draw(device) / 1000
        found["gpu_celsius"] = torch.cuda.temperature(device)
    except (ModuleNotFoundError, RuntimeError):  # no nvidia-ml-py, or a device that does not tell
        pass
    return found
