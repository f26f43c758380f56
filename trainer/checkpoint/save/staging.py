"""Copy this rank's training state to CPU memory, so that training can continue while the copies are written to disk.

The state does not change before the next optimizer step. Tensors of the CPU are therefore copied by a background thread
during the forward and backward passes; the training thread makes the copies that are still missing before the optimizer
step. Tensors of a GPU are copied by the GPU, which goes on computing meanwhile.
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
    """Buffers by name, allocated at the first save and used by all later ones, so that there is one copy at most."""

    def __init__(self, reserve: int | None = None) -> None:
        """
        Args:
            reserve: bytes of memory that stay free; None means a twentieth of the machine's memory.
        """
        self.reserve = psutil.virtual_memory().total // 20 if reserve is None else reserve
        self.full = False
        """Whether memory was too short for a copy, so that ``copy_of`` returned a tensor itself."""
        self._buffers: dict[str, Tensor] = {}
        self._room: int | None = None
        """Bytes left for new buffers. Free memory is measured once per save, because a new buffer takes no memory
        before it is filled, so later measurements would not count new buffers of this and other ranks."""
        self._left: deque[tuple[Tensor, Tensor]] = deque()
        """Copies that are still to be made: (destination, original)."""
        self._begun = False
        self._copied = threading.Event()

    def copy_of(self, name: str, tensor: Tensor) -> Tensor:
        """The CPU copy of ``tensor``, or ``tensor`` itself if memory is short. Only this rank's shard of it is copied.

        The copy has its values after ``make_copies``; that of a tensor on a GPU has them after ``wait_for_gpu``.
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
        # DTensor.from_local is not used, because it would move the copy to the device of the mesh.
        return DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer

    def _new(self, local: Tensor) -> Tensor | None:
        """A new buffer; None if memory is short."""
        room = self._room
        if room is None:
            ranks = int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)
            room = (available_memory() - self.reserve) // ranks
        room -= local.nbytes
        self._room = room
        if room < 0:
            return None
        try:
            # A GPU copies into pinned memory at full speed.
            return torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
        except RuntimeError:  # the system has a limit that ``available_memory`` does not know
            return None

    def begin(self) -> None:
        """Begin a save: the originals may not change until ``wait_for_copies`` has returned."""
        self._begun = True
        self._copied.clear()

    def make_copies(self) -> None:
        """Make all copies that are left; called in the background thread."""
        try:
            self._copy_left()
        finally:  # after an error too, so that the training thread does not wait for ever; the save reports the error
            self._room = None
            self._copied.set()

    def wait_for_copies(self) -> None:
        """Wait until all copies are made, so that the originals may change; called in the training thread."""
        if self._begun:
            self._copy_left()
            self._copied.wait()
            self._begun = False

    def _copy_left(self) -> None:
        while self._left:
            try:
                buffer, tensor = self._left.popleft()
            except IndexError:  # the other thread took the last one
                return
            buffer.copy_(tensor)

    def wait_for_gpu(self) -> None:
        """Wait until the copies of tensors on a GPU are made."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def free(self) -> None:
        """Free the buffers."""
        self._buffers.clear()


def available_memory() -> int:
    """Bytes that this process may still allocate, by the machine and by its control groups (SLURM, containers)."""
    least = psutil.virtual_memory().available
    with suppress(OSError, StopIteration):
        own = next(line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::"))
        root = Path("/sys/fs/cgroup")
        group = root / own.lstrip("/")
        for folder in (group, *group.parents):
            if folder != root and root not in folder.parents:
                break
            with suppress(OSError, ValueError):  # a group without limit has "max" in place of a number
                limit, used = (int((folder / f"memory.{name}").read_text()) for name in ("max", "current"))
                files = (folder / "memory.stat").read_text().split()
                reclaimable = int(files[files.index("inactive_file") + 1])
                least = min(least, limit - used + reclaimable)
    return least
