"""List the processor cores that this process may use. The file imports nothing that takes time."""

from __future__ import annotations

import os


def usable_cores() -> list[int]:
    """Numbers of the cores: those that a scheduler or ``taskset`` has left to this process, where the system says."""
    if hasattr(os, "sched_getaffinity"):  # macOS has no such call
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
