"""Check environment variables that trireme and its libraries read, and refuse wrong values in one message.

Launchers set most of them, but a variable exported by hand may hold anything. torch would then raise a traceback, wait
for ranks that never start, or silently train on the CPU.
"""

from __future__ import annotations

import os
import re

from ..errors import Problem, UserError

LEAST = {
    "RANK": 0,
    "LOCAL_RANK": 0,
    "GROUP_RANK": 0,
    "WORLD_SIZE": 1,
    "LOCAL_WORLD_SIZE": 1,
    "LOCAL_SIZE": 1,
    "MASTER_PORT": 1,
    "OMP_NUM_THREADS": 1,
    "MKL_NUM_THREADS": 1,
    "TORCHELASTIC_RESTART_COUNT": 0,
    "TORCHELASTIC_MAX_RESTARTS": 0,
    "SLURM_STEP_NUM_TASKS": 1,
    "SLURM_PROCID": 0,
    "SLURM_LOCALID": 0,
    "SLURM_NODEID": 0,
    "SLURM_NNODES": 1,
    "SLURM_STEP_NUM_NODES": 1,
    "SLURM_CPUS_PER_TASK": 1,
    "SLURM_JOB_ID": 0,
    "SLURM_STEP_ID": 0,
    "SLURM_RESTART_COUNT": 0,
}
"""Variables that hold a whole number -> smallest valid value."""
BELOW = {"RANK": "WORLD_SIZE", "LOCAL_RANK": "LOCAL_WORLD_SIZE"}
"""Variables that hold an index -> variable that holds the number of such indices."""
CHOICES = {
    "TORCH_DISTRIBUTED_DEBUG": ("OFF", "INFO", "DETAIL"),
    "DS_ACCELERATOR": ("cpu", "cuda", "xpu", "npu", "mps", "hpu", "mlu"),
}
DEVICE = re.compile(r"-?\d+|(GPU|MIG)-[\w/.-]+|NoDevFiles|none|void|all", re.IGNORECASE)
STARTED = "TRIREME_STARTED"
"""Start of the run in seconds since the epoch, which job scripts and launchers set (``trainer/interruption.py``)."""
LONGEST = 18
"""Most digits of a number that surely fits into 64 bits."""


def check_environment() -> None:
    """Refuse variables whose values are wrong.

    Raises:
        UserError: all problems, each under the name of its variable.
    """
    if problems := environment_problems():
        raise UserError(*problems)


def environment_problems() -> list[Problem]:
    """Problems of the variables that are set."""
    problems = [problem for name, least in LEAST.items() for problem in _number(name, least)]
    problems = problems or _ranks()
    for name, choices in CHOICES.items():
        value = os.environ.get(name)
        if value and value.upper() not in [choice.upper() for choice in choices]:
            problems.append(
                Problem(name, "is not one of the known values", f"use {' or '.join(choices)}, or unset it", value)
            )
    devices = os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices and not all(DEVICE.fullmatch(part.strip()) for part in devices.split(",")):
        fix = "list numbers of GPUs, such as 0,1; empty hides all of them; or unset it"
        problems.append(Problem("CUDA_VISIBLE_DEVICES", "is not a list of GPUs", fix, devices))
    started = os.environ.get(STARTED)
    if started and not re.fullmatch(rf"\d{{1,{LONGEST}}}(\.\d*)?", started, re.ASCII):
        why = "is not a time in seconds since 1970"
        problems.append(Problem(STARTED, why, "unset it: launchers and job scripts set it", started))
    return problems


def _number(name: str, least: int) -> list[Problem]:
    value = os.environ.get(name)
    if value is None or (value == "" and not name.startswith(("RANK", "WORLD", "LOCAL_RANK", "MASTER"))):
        return []
    parts = value.split(",") if name == "OMP_NUM_THREADS" else [value]  # one for each level of nesting
    fix = "use a port from 1024 to 65535" if name == "MASTER_PORT" else f"set it to {least} or more"
    if any(not (part.strip().isascii() and part.strip().isdigit()) or len(part) > LONGEST for part in parts):
        return [Problem(name, "is not a whole number", f"{fix}, or unset it", value)]
    if any(int(part) < least for part in parts):
        return [Problem(name, f"is below {least}", f"{fix}, or unset it", value)]
    if name == "MASTER_PORT" and int(value) > 65535:
        return [Problem(name, "is not a port", f"{fix}, or unset it", value)]
    return []


def _ranks() -> list[Problem]:
    """Problems between the variables of a launcher: ranks and their numbers must agree."""
    numbers = {name: int(os.environ[name]) for name in (*BELOW, *BELOW.values()) if os.environ.get(name)}
    problems = [
        Problem(name, f"is not below {size}={numbers[size]}", "let the launcher set both, or unset them", numbers[name])
        for name, size in BELOW.items()
        if name in numbers and size in numbers and numbers[name] >= numbers[size]
    ]
    for name, other in (("RANK", "WORLD_SIZE"), ("WORLD_SIZE", "RANK")):
        if name in numbers and other not in numbers and numbers.get("WORLD_SIZE", 2) > 1:
            why = f"is set without {other}: no launcher started this process, so it would wait without end"
            problems.append(Problem(name, why, "unset it, or start with a launcher such as torchrun", numbers[name]))
    return problems
