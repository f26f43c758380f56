"""Make a SLURM task a rank: set its number, and the address at which ranks meet, from SLURM's environment variables.
If ``launch.node_storage`` names a local disk, the caches of libraries are put there.

srun tells a task its number in SLURM_PROCID and similar variables. ``take_rank`` translates them to RANK, WORLD_SIZE
and the other names that torch and DeepSpeed read, so that ``srun python -m trireme.launch.train RECIPE`` needs no
launcher. Ranks of torchrun or of trireme's own launcher have these variables already and keep them.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ...errors import Problem, UserError
from ...trainer.error_file import ERROR_FILE

LOGS = "TRIREME_LOGS"
"""Variable with the folder for the output of ranks; the script of the job sets it, and reads failures from it."""
NODE_STORAGE = "TRIREME_NODE_STORAGE"
"""Variable with a folder on a local disk of this machine; its files may be lost when the job ends."""
CACHES = {
    "TRIREME_CACHE": "trireme",
    "HF_DATASETS_CACHE": "datasets",
    "TORCH_EXTENSIONS_DIR": "torch_extensions",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
    "TRITON_CACHE_DIR": "triton",
}
"""Cache variables of libraries, and the folder below ``NODE_STORAGE`` that each gets."""
FIRST_PORT, PORTS = 12_000, 18_000
"""Ports to meet at; they lie below those that the system gives to outgoing connections."""


def take_rank() -> None:
    """Make this task a rank if srun started several tasks and no launcher has set RANK."""
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
    _redirect_output(int(os.environ["RANK"]))


def use_node_storage() -> None:
    """Point the caches of libraries to this machine's local disk, if ``launch.node_storage`` names a folder.

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
    """A port derived from the job's number, so that jobs on the same machine rarely choose the same."""
    number = int(os.environ.get("SLURM_JOB_ID", "0")) + int(os.environ.get("SLURM_STEP_ID", "0"))
    return FIRST_PORT + number % PORTS


def tasks_per_node(text: str) -> list[int]:
    """``2(x3),1`` -> [2, 2, 2, 1]"""
    counts: list[int] = []
    for count, repeated in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeated or 1)
    return counts


def first_host(hosts: str) -> str:
    """``rack[2-3]n[07-09,12],login`` -> ``rack2n07``. Not by scontrol, which containers often lack."""
    first = re.match(r"(?:\[[^\]]*\]|[^,\[])*", hosts)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else "") or "localhost"


def _nodes() -> str:
    return os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST", "")


def _redirect_output(rank: int) -> None:
    """Send the output of this rank to the file that a launcher would use; rank 0 keeps the job's output."""
    logs = os.environ.get(LOGS)
    if not logs:
        return
    folder = Path(logs) / "attempt_0" / str(rank)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # reported when the run folder is opened
        return
    os.environ.setdefault(ERROR_FILE, str(folder / "error.json"))
    if rank > 0:
        for number, name in ((1, "stdout.log"), (2, "stderr.log")):
            file = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, number)
            os.close(file)
