"""Import the DeepSpeed package on demand, for the right accelerator and with fewer messages, and give it the process
group that it needs.

Checks of a recipe import this file to ask whether DeepSpeed is installed. So that they stay fast, torch is imported on
demand too.
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
    """The package; its accelerator is the CPU if there is no CUDA."""
    import torch

    logger = logging.getLogger("DeepSpeed")
    level = logger.level or logging.WARNING  # set again after the import, which changes it
    chosen = os.environ.get("DS_ACCELERATOR")
    if chosen is None and not torch.cuda.is_available():
        os.environ["DS_ACCELERATOR"] = "cpu"
    try:
        with warnings.catch_warnings(), no_linker_errors():
            warnings.simplefilter("ignore")
            import deepspeed

            accelerator = current_accelerator()
    finally:
        if chosen is None:  # child processes inherit the environment, and may have a GPU that this process lacks
            os.environ.pop("DS_ACCELERATOR", None)
    if accelerator.device_name() == "cpu":
        # DeepSpeed requires oneDNN's kernels for fp16; torch also computes fp16 without them, only slowly.
        accelerator.is_fp16_supported = lambda: True
        _cache_numa_cores()
    logger.setLevel(level)
    for name in ("reduce_scatter_tensor", "all_gather_into_tensor"):  # DeepSpeed calls these deprecated collectives
        warnings.filterwarnings("ignore", f"`torch.distributed.{name}` is deprecated", FutureWarning)
    return deepspeed


def _cache_numa_cores() -> None:
    """Cache the list of CPU cores, since DeepSpeed else starts ``numactl`` for every gradient of ZeRO-3."""
    from deepspeed.utils import numa

    if not hasattr(numa.get_numa_cores, "cache_info"):
        numa.get_numa_cores = functools.cache(numa.get_numa_cores)


def current_accelerator() -> Any:
    """DeepSpeed's accelerator object for the device."""
    from deepspeed.accelerator import get_accelerator

    return get_accelerator()


def ensure_process_group(device: torch.device) -> None:
    """Create a process group of one rank if there is none, because DeepSpeed always needs one."""
    import torch.distributed as dist

    from ..device import backend_of

    # DeepSpeed chooses its GPU by LOCAL_RANK, which differs from the device's index if each rank sees only its own GPU.
    os.environ["LOCAL_RANK"] = os.environ.get("LOCAL_RANK", "0") if device.index is None else str(device.index)
    if not dist.is_initialized():
        dist.init_process_group(backend_of(device), store=dist.HashStore(), rank=0, world_size=1)


@contextlib.contextmanager
def no_linker_errors() -> Iterator[None]:
    """Hide messages such as ``/usr/bin/ld: cannot find -laio`` in a notebook.

    DeepSpeed tries to link a program against the libraries of its operators, and hides the linker's messages by
    redirecting the file of ``sys.stderr``. In a notebook this is not the file to which the linker writes.
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
    """Hide the output of DeepSpeed and of the compiler of its operators; errors are still logged."""
    logger = logging.getLogger("DeepSpeed")
    level = logger.level
    logger.setLevel(
        max(level, logging.ERROR)
    )  # at its start DeepSpeed warns about schedulers that have not begun and about missing timers
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), no_linker_errors():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
