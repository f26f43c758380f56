"""Count the processes that Linux killed because memory ran out, to explain why a trial ended by SIGKILL."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

COUNTERS = (Path("/proc/vmstat"), Path("/sys/fs/cgroup/memory.events"))
"""Files with a line ``oom_kill N``: of the machine, and of a container."""


def memory_kills(files: Sequence[Path] = COUNTERS) -> int:
    """Processes of this machine or container that were killed for want of memory so far; 0 if nothing counts them."""
    found = 0
    for file in files:
        with suppress(OSError, ValueError):
            lines = dict(line.split(maxsplit=1) for line in file.read_text().splitlines() if " " in line)
            found += int(lines.get("oom_kill", 0))
    return found
