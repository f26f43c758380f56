"""Copies of this rank's state in CPU memory: training goes on with the tensors while their copies are written."""

from __future__ import annotations

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
        """There was no room for a copy: ``take`` gave a tensor as it is."""
        self._buffers: dict[str, Tensor] = {}

    @torch.no_grad()
    def take(self, name: str, tensor: Tensor) -> Tensor:
        """A copy of ``tensor``; a DTensor's has its part on the CPU. Of a GPU's tensor it is there after ``wait``."""
        local = tensor._local_tensor if isinstance(tensor, DTensor) else tensor
        buffer = self._buffers.get(name)
        if buffer is None or buffer.shape != local.shape or buffer.dtype != local.dtype:
            if psutil.virtual_memory().available - local.nbytes < self.reserve:
                self.full = True
                return tensor
            # Pinned memory is what a GPU copies into at full speed.
            buffer = torch.empty(local.shape, dtype=local.dtype, pin_memory=local.is_cuda)
            self._buffers[name] = buffer
        buffer.copy_(local, non_blocking=True)
        # Not DTensor.from_local, which would move the copy to the device of the mesh.
        return DTensor(buffer, tensor._spec, requires_grad=False) if isinstance(tensor, DTensor) else buffer

    def wait(self) -> None:
        """Until all copies are there."""
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            torch.cuda.current_stream().synchronize()

    def release(self) -> None:
        """Give the memory back."""
        self._buffers.clear()
