"""Run the first steps of a process that uses torch: check and set environment variables before torch reads them, then
call a function and turn its errors into an exit code.

For commands that launchers may start, also find out whether the process is a rank.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable

from ..models.quantization.bitsandbytes_library import hush
from .check_environment import check_environment, environment_problems
from .elastic import launched
from .error_report import guard
from .failures import run_rank
from .slurm.job_task import take_rank

SPINS = "5000"
"""How often a thread of OpenMP looks for new work before it sleeps: about 0.1 ms. Threads that never look take a third
more time for a small model's step, since each operation must wake them. Threads that look for long, which is the
default of torch's OpenMP, make a step several times slower if another process uses one of their cores."""


def enter(function: Callable[[], None], debug: bool) -> int:
    """Call ``function`` in a process that may be one of several ranks; returns the exit code."""
    prepare_process()
    if environment_problems():
        return guard(check_environment, debug)
    take_rank()
    return run_rank(function, debug) if launched() else guard(function, debug)


def prepare_process() -> None:
    """Set variables that torch reads once (at import or at its first use of a GPU), and silence messages of tqdm and
    bitsandbytes that mean nothing here."""
    if "OMP_WAIT_POLICY" not in os.environ:  # the user's choice counts
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # GPUs have the numbers that nvidia-smi shows
    warnings.filterwarnings("ignore", "IProgress not found")  # tqdm warns in notebooks without ipywidgets
    hush()
