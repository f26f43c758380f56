"""Check that a run really uses an option, by counting calls of a function that happen only with the option.

Equal losses would not show this, since an ignored option changes no loss either.
"""

from __future__ import annotations

import multiprocessing
import pkgutil
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import pytest

CHECKPOINT = "trireme.parallel.recompute.checkpoint"
DDP = "trireme.parallel.apply.DistributedDataParallel"
FSDP = "torch.distributed.fsdp.FSDPModule"
WITNESSES: dict[str, tuple[str, Callable[..., bool]]] = {
    "plan.recompute=full": (CHECKPOINT, lambda *_, **options: "context_fn" not in options),
    "plan.recompute=selective": (CHECKPOINT, lambda *_, **options: "context_fn" in options),
    "plan.compile=true": ("torch.nn.Module.compile", lambda *_, **options: True),
    "plan.compile_backend=aot_eager": (
        "torch.nn.Module.compile",
        lambda *_, **options: options["backend"] == "aot_eager",
    ),
    "plan.ddp.broadcast_buffers=true": (DDP, lambda *_, **options: options["forward_sync_buffers"]),
    "plan.deterministic=true": ("torch.use_deterministic_algorithms", lambda on, **_: on),
    "plan.ddp.bucket_cap_mb=1": (DDP, lambda *_, **options: options["bucket_cap_mb"] == 1),
    "plan.ddp.find_unused_parameters=true": (DDP, lambda *_, **options: options["find_unused_parameters"]),
    "plan.fsdp.forward_prefetch=1": (f"{FSDP}.set_modules_to_forward_prefetch", lambda _, ahead: len(ahead) == 1),
    "plan.fsdp.backward_prefetch=2": (f"{FSDP}.set_modules_to_backward_prefetch", lambda _, ahead: len(ahead) == 2),
    "plan.fsdp.reduce_every_micro_batch=false": (f"{FSDP}.set_requires_gradient_sync", lambda _, now: not now),
    "plan.fsdp.reshard_after_forward=false": (f"{FSDP}.set_reshard_after_backward", lambda _, now: not now),
    "+ema.decay=0.9": ("trireme.trainer.ema.Ema.update", lambda _: True),
}
"""Option -> a library function, and a test of its arguments that is true only if the option takes effect."""


def witnesses(patch: pytest.MonkeyPatch, *options: str) -> list[Synchronized]:
    """For each option, a counter of calls that show its use, in this process and in those forked from it."""
    return [_counted(patch, *WITNESSES[option]) for option in options]


def _counted(patch: pytest.MonkeyPatch, path: str, counts: Callable[..., bool]) -> Synchronized:
    owner, _, name = path.rpartition(".")
    function, calls = pkgutil.resolve_name(path), multiprocessing.get_context("fork").Value("i", 0)

    def counted(*args: Any, **kwargs: Any) -> Any:
        with calls.get_lock():
            calls.value += bool(counts(*args, **kwargs))
        return function(*args, **kwargs)

    patch.setattr(pkgutil.resolve_name(owner), name, counted)
    return calls
