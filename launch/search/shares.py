"""Divide the CPU cores and GPUs of this machine among trials that run at the same time."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ...errors import Problem, UserError
from ...parallel.usable_cores import usable_cores

VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Share:
    """The cores and devices that one of the trials that run at once may use."""

    cores: list[int]
    devices: list[str] | None
    """Names for CUDA_VISIBLE_DEVICES; None leaves it as it is."""

    @property
    def variables(self) -> dict[str, str]:
        return {} if self.devices is None else {VISIBLE: ",".join(self.devices)}


def shares(jobs: int, ranks: int) -> list[Share]:
    """Shares of this machine for ``jobs`` trials of ``ranks`` ranks each.

    Raises:
        UserError: there are devices, but too few for each rank to have one.
    """
    return share_out(usable_cores(), devices(), jobs, ranks)


def share_out(cores: list[int], devices: list[str], jobs: int, ranks: int) -> list[Share]:
    """Contiguous parts of cores and devices. With fewer cores than trials, several trials share one."""
    if devices and jobs > 1 and jobs * ranks > len(devices):
        why = f"needs {jobs * ranks} devices ({jobs} trials of {ranks} rank(s)), and there are {len(devices)}"
        fix = f"use at most {max(len(devices) // ranks, 1)}"
        raise UserError(Problem("search.jobs", why, fix, jobs))
    own = [_part(cores, number, jobs) or [cores[number % len(cores)]] for number in range(jobs)]
    given = [_part(devices, number, jobs) if devices and jobs > 1 else None for number in range(jobs)]
    return [Share(*pair) for pair in zip(own, given, strict=True)]


def devices() -> list[str]:
    """Names of the GPUs that this process may use."""
    import torch

    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get(VISIBLE, "").split(",") if name.strip()]
    return named[:count] if named else [str(number) for number in range(count)]


def _part(items: list, number: int, parts: int) -> list:
    return items[len(items) * number // parts : len(items) * (number + 1) // parts]
