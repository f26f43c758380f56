"""Tests of the CPU memory that holds copies of the training state while a checkpoint is written in the background."""

from __future__ import annotations

import psutil
import pytest
import torch
from trireme.trainer.checkpoint.save import staging as module
from trireme.trainer.checkpoint.save.staging import Staging, available_memory

MIB = 2**20


def test_buffers_count_before_they_are_filled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such buffers take no memory yet, so free memory does not show them, nor those of other ranks on this machine."""
    monkeypatch.setattr(module, "available_memory", lambda: 10 * MIB)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    staging, tensor = Staging(reserve=4 * MIB), torch.ones(MIB // 4)
    copies = [staging.copy_of(str(number), tensor) for number in range(3)]
    assert not staging.full and all(copy is not tensor for copy in copies)
    assert staging.copy_of("one too many", tensor) is tensor and staging.full
    staging.make_copies()
    assert all(torch.equal(copy, tensor) for copy in copies)


def test_buffers_are_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_memory", lambda: MIB)
    staging, tensor = Staging(reserve=0), torch.zeros(MIB // 4)
    first = staging.copy_of("weights", tensor)
    staging.make_copies()
    monkeypatch.setattr(module, "available_memory", lambda: 0)
    assert staging.copy_of("weights", tensor) is first and not staging.full


def test_a_failed_allocation_counts_as_full_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("can't allocate memory")

    monkeypatch.setattr(torch, "empty", refuse)
    staging, tensor = Staging(reserve=0), torch.zeros(2)
    assert staging.copy_of("weights", tensor) is tensor and staging.full


def test_the_memory_of_this_machine() -> None:
    assert 0 < available_memory() <= psutil.virtual_memory().total
