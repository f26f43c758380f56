"""Simulate a full disk: a small file system in memory, or a limit on the size of files that this process writes."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Context in which ``folder`` has room for ``size`` bytes. Skips the test where that cannot be mounted."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """Files of this process cannot grow past so many bytes: writes are cut short, then fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def unmount_below(folder: Path) -> None:
    """Unmount what a killed command has left mounted there, later mounts first, since they may lie in earlier ones."""
    for mounted in reversed(psutil.disk_partitions(all=True)):
        if Path(mounted.mountpoint).is_relative_to(folder):
            subprocess.run(["umount", "-l", mounted.mountpoint], capture_output=True)
