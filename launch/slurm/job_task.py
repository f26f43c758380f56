"""What SLURM says to a process: the rank of a task, where tasks meet, the disk of this machine.

A task that srun starts finds its place in SLURM_PROCID and its kin. ``take_rank`` writes that down as RANK, WORLD_SIZE
and so on, the names that torch and DeepSpeed read, so that ``srun python -m trireme.launch.train RECIPE`` needs no
launcher. A rank of torchrun or of trireme's own launcher has these already, and is left alone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...errors import Problem, UserError
from ...trainer.error_file import ERROR_FILE

LOGS = "TRIREME_LOGS"
"""Folder for the output of ranks; set by the script of a job, which in the end shows the failure that is left there."""
NODE_STORAGE = "TRIREME_NODE_STORAGE"
"""Folder on a disk of this machine; what it holds may be lost with the job."""
CACHES = {
    "TRIREME_CACHE": "trireme",
    "HF_DATASETS_CACHE": "datasets",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""Variables of libraries that keep files of their own -> folder below ``NODE_STORAGE``."""
FIRST_PORT, PORTS = 12_000, 18_000
"""Below what systems give to outgoing connections."""


def take_rank() -> None:
    """Make this task a rank, if it is one of several that srun has started and nobody else has given it a rank."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if "RANK" in os.environ or tasks < 2 or "SLURM_PROCID" not in os.environ:
        return
    here = tasks_per_node(os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(tasks)))[int(os.environ["SLURM_NODEID"])]
    os.environ.update(
        RANK=os.environ["SLURM_PROCID"],
        WORLD_SIZE=str(tasks),
        LOCAL_RANK=os.environ["SLURM_LOCALID"],
        LOCAL_WORLD_SIZE=str(here),
    )
    os.environ.setdefault("MASTER_ADDR", first_host(_nodes()))
    os.environ.setdefault("MASTER_PORT", str(meeting_port()))
    cores = len(os.sched_getaffinity(0))
    own = int(os.environ.get("SLURM_CPUS_PER_TASK") or max(cores // here, 1))
    os.environ.setdefault("OMP_NUM_THREADS", str(min(own, cores)))
    _speak_into_a_file(int(os.environ["RANK"]))


def use_node_storage() -> None:
    """Let libraries keep their files on this machine's own disk, where the job names one.

    Raises:
        UserError: it cannot be written.
    """
    named = os.environ.get(NODE_STORAGE)
    if not named:
        return
    root = Path(os.path.expandvars(named))
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"cannot be written on {os.uname().nodename}: {error.strerror or error}"
        raise UserError(Problem("launch.node_storage", why, "name a folder on a disk of the machines", named)) from None
    os.environ[NODE_STORAGE] = str(root)
    for variable, folder in CACHES.items():
        os.environ.setdefault(variable, str(root / folder))


def meeting_port() -> int:
    """A port that other jobs on the same machine are unlikely to take."""
    number = int(os.environ.get("SLURM_JOB_ID", "0")) + int(os.environ.get("SLURM_STEP_ID", "0"))
    return FIRST_PORT + number % PORTS


def tasks_per_node(text: str) -> list[int]:
    """``2(x3),1`` -> [2, 2, 2, 1]"""
    counts: list[int] = []
    for count, repeated in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeated or 1)
    return counts


def first_host(hosts: str) -> str:
    """``rack[2-3]n[07-09,12],login`` -> ``rack2n07``; scontrol, which could tell too, is not in every container."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", hosts)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else "") or "localhost"


def _nodes() -> str:
    return os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")


def _speak_into_a_file(rank: int) -> None:
    """Output of ranks but the first goes where a launcher would put it; the first keeps that of the job."""
    logs = os.environ.get(LOGS)
    if not logs:
        return
    folder = Path(logs) / "attempt_0" / str(rank)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # told where the run folder is opened
        return
    os.environ.setdefault(ERROR_FILE, str(folder / "error.json"))
    if rank > 0:
        for number, name in ((1, "stdout.log"), (2, "stderr.log")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
            os.close(file)
