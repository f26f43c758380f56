"""Import the DeepSpeed package: only when needed, for the right accelerator, and without its messages.

Checks of a recipe ask whether it is installed, so torch is imported late too.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def installed() -> bool:
    return importlib.util.find_spec("deepspeed") is not None


def import_deepspeed() -> Any:
    """The package, with the CPU as its accelerator where CUDA is missing."""
    import torch

    logger = logging.getLogger("DeepSpeed")
    level = logger.level or logging.WARNING  # of the recipe; the import sets its own
    chosen = os.environ.get("DS_ACCELERATOR")
    if chosen is None and not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        with warnings.catch_warnings(), no_linker_errors():
            warnings.simplefilter("ignore")
            import deepspeed

            accelerator = current_accelerator()
    finally:
        if chosen is None:  # ranks that are started from here may have the GPU that this process lacks
            os.environ.pop("DS_ACCELERATOR", None)
    if accelerator.device_name() == "cpu":
        # DeepSpeed asks for oneDNN's kernels; torch computes fp16 without them as well, only slowly.
        accelerator.is_fp16_supported = lambda: True
        _look_at_cores_once()
    logger.setLevel(level)
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):  # DeepSpeed's collectives, at every call
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}` is deprecated", FutureWarning)
    return deepspeed


def _look_at_cores_once() -> None:
    """DeepSpeed starts ``numactl`` whenever it counts the devices of a CPU, which ZeRO-3 does for every gradient."""
    from deepspeed.utils import numa

    if not hasattr(numa.get_numa_cores, "cache_info"):
        numa.get_numa_cores = functools.cache(numa.get_numa_cores)


def current_accelerator() -> Any:
    """DeepSpeed's view of the device."""
    from deepspeed.accelerator import get_accelerator

    return get_accelerator()


def ensure_process_group(device: torch.device) -> None:
    """DeepSpeed wants a process group, even of one; ranks of a larger run have theirs already."""
    import torch.distributed as dist

    from ..device import backend_of

    # By this it takes its GPU, which need not be the rank's number on the machine: each may see only its own.
    os.environ["LOCAL_RANK"] = os.environ.get("LOCAL_RANK", "0") if device.index is None else str(device.index)
    if not dist.is_initialized():
        dist.init_process_group(backend_of(device), store=dist.HashStore(), rank=0, world_size=1)


@contextlib.contextmanager
def no_linker_errors() -> Iterator[None]:
    """Without ``/usr/bin/ld: cannot find -laio`` in a notebook.

    DeepSpeed tries to link a program against the libraries of its operators, and hides what the linker says by sending
    the file behind ``sys.stderr`` to nowhere. In a notebook that is another file than the one that programs write to.
    """
    if _file_of_stderr() == 2:
        yield
        return
    sys.stderr.flush()
    with open(os.devnull, "w") as nowhere:
        kept = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)


def _file_of_stderr() -> int | None:
    try:
        return sys.stderr.fileno()
    except (OSError, ValueError, AttributeError):
        return None


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what DeepSpeed and the compiler of its operators print; the logger still warns."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(
        max(level, logging.ERROR)
    )  # starting, it warns of schedulers that have not begun and of timers it lacks
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), no_linker_errors():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
