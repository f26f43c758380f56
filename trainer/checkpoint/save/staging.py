"""Copies of this rank's state in CPU memory: training goes on with the tensors while their copies are written.

Nothing of the state changes until the next optimizer step, so the copies need not be there before: another thread makes
them during the forward and backward passes, and who needs them finished helps with what is left.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


class Staging:
    """Buffers by name, made at the first save and used again by every later one: one copy of the state at most."""

    def __init__(self, reserve: int | None = None) -> None:
        """
        Args:
            reserve: bytes of memory that stay free; None is a twentieth of the machine's.
        """
        self.reserve = psutil.virtual_memory().total // 20 if reserve is None else reserve
        self.full = False
        """There was no room for a copy: ``copy_of`` gave a tensor as it is."""
        self._buffers: dict[str, Tensor] = {}
        self._room: int | None = None
        """Bytes left for new buffers. Asked for once a save: a buffer takes no memory before something is copied into
        it, so that what is free would not tell of those that were just made, here and on the other ranks."""
        self._left: deque[tuple[Tensor, Tensor]] = deque()
        """Copies to be made: (to, from)."""
        self._begun = False
        self._copied = threading.Event()

    def copy_of(self, name: str, tensor: Tensor) -> Tensor:
        """Room for a copy of ``tensor``, on the CPU; of a DTensor, of this rank's part.

        The values are there after ``make_copies``, those of a GPU's tensor after ``wait_for_gpu``. Where there is no
        room, ``tensor`` itself.
        """
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
            buffer = self._new(local)
            if buffer is None:
                self.full = True
                return tensor
            self._buffers[name] = buffer
        if local.is_cuda:
            buffer.copy_(local.detach(), non_blocking=True)
        else:
            self._left.append((buffer, local.detach()))
        # Not DTensor.from_local, which would move the copy to the device of the mesh.
        return DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer

    def _new(self, local: Tensor) -> Tensor | None:
        """None where there is no room."""
        room = self._room
        if room is None:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
            room = (available_memory() - self.reserve) // ranks
        room -= local.nbytes
        self._room = room
        if room < 0:
            return None
        try:
            # Pinned memory is what a GPU copies into at full speed.
            return torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
        except RuntimeError:  # a limit that nothing here knows of
            return None

    def begin(self) -> None:
        """From now on, until ``wait_for_copies`` has returned, tensors that were taken may not change."""
        self._begun = True
        self._copied.clear()

    def make_copies(self) -> None:
        """Make the copies that no thread has begun; in the thread that writes."""
        try:
            self._copy_left()
        finally:  # also after an error, which the save reports: the thread that trains must not wait for ever
            self._room = None
            self._copied.set()

    def wait_for_copies(self) -> None:
        """Until all copies are there, so that the tensors may change; in the thread that trains."""
        if self._begun:
            self._copy_left()
            self._copied.wait()
            self._begun = False

    def _copy_left(self) -> None:
        while self._left:
            try:
                buffer, tensor = self._left.popleft()
            except IndexError:  # the other thread was quicker
                return
            buffer.copy_(tensor)

    def wait_for_gpu(self) -> None:
        """Until the copies of a GPU's tensors are there."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def free(self) -> None:
        """Give the memory back."""
        self._buffers.clear()


def available_memory() -> int:
    """Bytes that processes here may still take: of the machine's, and of its control groups' (SLURM, containers)."""
    least = psutil.virtual_memory().available
    with suppress(OSError, StopIteration):
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        root = Path("/sys/fs/cgroup")
        group = root / own.lstrip("/")
        for folder in (group, *group.parents):
            if folder != root and root not in folder.parents:
                break
            with suppress(OSError, ValueError):  # the latter: "max"
                limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
                files = (folder / "memory.stat").read_text().split()
                reclaimable = int(files[files.index("inactive_file") + 1])
                least = min(least, limit - used + reclaimable)
    return least
