"""The ``launch`` part of a recipe: where ``trireme launch`` starts it, and with what.

Numbers and words only: the script of a job is made from it in ``slurm/script.py``. Nothing of ``launch`` is imported
here, so that ``configs/schema.py`` can take the dataclass into the recipe.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from ..errors import refuse
from ..trainer.interruption import parse_time

if TYPE_CHECKING:
    from ..parallel.plan import Plan

OWN_OPTIONS = {
    "job-name": "job_name", "nodes": "nodes", "ntasks": "ranks_per_node", "ntasks-per-node": "ranks_per_node",
    "gpus-per-node": "gpus_per_node", "cpus-per-task": "cpus_per_rank", "mem": "memory", "time": "time",
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint",
    "signal": "signal_seconds", "requeue": "requeue", "no-requeue": "requeue", "mail-user": "mail_user",
    "mail-type": "mail_type", "output": "log", "array": "at_once",
}  # fmt: skip
"""Options of sbatch that have a field of their own here."""
FOR_RANKS = "the number of ranks follows from launch.nodes and launch.ranks_per_node (or launch.gpus_per_node)"


@dataclass(frozen=True)
class Shape:
    """How ranks lie on machines."""

    nodes: int
    ranks_per_node: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclass
class LaunchConfig:
    """Where a run is started by ``trireme launch``. ``trireme train`` trains where it is and reads none of it."""

    kind: Literal["local", "slurm"] = "local"
    """local: on this machine, as ``trireme train`` does. slurm: in a job of a SLURM cluster."""

    nodes: int | None = None
    """Machines; null takes as many as the plan's degrees need."""
    gpus_per_node: int = 0
    """GPUs of each machine, a rank for each; 0 trains on the CPU."""
    gpu_type: str | None = None
    """Type of GPU to ask for, by the cluster's name for it (``a100``)."""
    ranks_per_node: int | None = None
    """Ranks on each machine; null takes one per GPU, and without GPUs what the plan needs, shared by the machines."""
    tasks: Literal["node", "rank"] = "node"
    """What SLURM starts. node: one launcher on each machine, torch's elastic agents that meet through a c10d rendezvous
    and start the ranks there (and start them again after a failure, with ``--max-restarts``). rank: every rank."""
    cpus_per_rank: int | None = None
    """Cores of each rank; null leaves it to the cluster."""
    memory: str | int | None = None
    """Memory of each machine, as SLURM writes it: ``64G``; 0 is all of it; null leaves it to the cluster."""
    time: str | None = None
    """Time limit of the job, as SLURM writes it: "HH:MM:SS" or "D-HH:MM:SS", in YAML in quotes; null is the
    partition's."""

    partition: str | None = None
    """Partition, or several with commas."""
    account: str | None = None
    """Account that pays."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Features that machines must have."""
    job_name: str | None = None
    """Name of the job; null takes the recipe's."""
    mail_user: str | None = None
    """Who gets mail."""
    mail_type: str | None = None
    """When: ``END,FAIL`` ..."""
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    """Further ``#SBATCH`` lines by the long name of the option: ``{reservation: mine, exclusive: true}``."""
    srun: list[str] = field(default_factory=list)
    """Further options of srun, which starts the tasks: ``[--gpu-bind=none, --mpi=none]``."""

    signal_seconds: int | None = 120
    """So long before the time limit SLURM sends SIGUSR1: ranks save and leave; null sends none."""
    requeue: bool = True
    """Queue the job again when it has left early and is saved, and after a preemption or the loss of a machine."""
    max_requeues: int = 100
    """How often the job queues itself again (preemptions counted)."""
    at_once: int | None = None
    """Jobs of a sweep that may run at the same time; null sets no limit."""

    modules: list[str] = field(default_factory=list)
    """Environment modules to load."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell before the tasks start, on the first machine."""
    env: dict[str, str | int] = field(default_factory=dict)
    """Environment variables of the ranks."""
    python: str | None = None
    """Python of the ranks; null takes the one that runs this command, in a container ``python``."""
    container: str | None = None
    """Image in which the ranks run."""
    container_engine: Literal["pyxis", "apptainer"] = "pyxis"
    """pyxis: srun's plugin (``--container-image``). apptainer: ``apptainer exec``, also of singularity images."""
    container_mounts: list[str] = field(default_factory=list)
    """Further folders that the container sees, ``SOURCE:TARGET``; working and run folder are seen anyway."""
    wrap: list[str] = field(default_factory=list)
    """A command in front of each task's: ``[numactl, --localalloc]``."""
    node_storage: str | None = None
    """Folder on a disk of each machine (``/scratch/$SLURM_JOB_ID``; variables are those of the machine). Prepared data
    and compiled kernels go there, and ``$TRIREME_NODE_STORAGE`` names it, also in ``nvme_path`` of DeepSpeed."""
    port: int | None = None
    """Port on the first machine where ranks meet; null takes one by the number of the job."""
    log: str | None = None
    """Output of the job, with SLURM's patterns; null is ``logs/slurm_%j.log`` in the run folder."""

    REPLACED: ClassVar[dict[str, tuple[str, str]]] = {
        "cpus_per_task": ("would mean another thing with launch.tasks=rank", "write launch.cpus_per_rank"),
        "ntasks": (FOR_RANKS, "leave it out"),
        "ntasks_per_node": (FOR_RANKS, "write launch.ranks_per_node"),
        "tasks_per_node": (FOR_RANKS, "write launch.ranks_per_node"),
        "mem": ("is called memory", "write launch.memory"),
        "gpus": ("is asked for by machine", "write launch.nodes and launch.gpus_per_node"),
        "timeout_min": ("is called time", "write launch.time=HH:MM:SS"),
        "signal": ("is fixed to SIGUSR1, to the job's script", "write launch.signal_seconds for its lead"),
        "output": ("is called log", "write launch.log"),
        "max_num_timeout": ("is called max_requeues", "write launch.max_requeues"),
        "additional_parameters": ("is called sbatch", "write launch.sbatch={name: value}"),
    }
    """Names of sbatch and of other launchers."""

    def __post_init__(self) -> None:
        refuse([*self._numbers(), *self._texts(), *self._names(), *self._together()])

    def _numbers(self) -> list[str]:
        least = {"nodes": 1, "gpus_per_node": 0, "ranks_per_node": 1, "cpus_per_rank": 1, "signal_seconds": 1,
                 "max_requeues": 0, "at_once": 1, "port": 1024}  # fmt: skip
        values = {name: getattr(self, name) for name in least}
        problems = [
            f"{name}={value} must be at least {least[name]}"
            for name, value in values.items()
            if value is not None and value < least[name]
        ]
        if self.signal_seconds is not None and self.signal_seconds > 65535:
            problems.append(f"signal_seconds={self.signal_seconds} is more than SLURM takes; use at most 65535")
        if self.port is not None and self.port > 65535:
            problems.append(f"port={self.port} is no port; use 1024 to 65535")
        return problems

    def _texts(self) -> list[str]:
        """What would break a line of the script."""
        problems = []
        for each in fields(self):
            value = getattr(self, each.name)
            parts = value if isinstance(value, list) else value.values() if isinstance(value, dict) else [value]
            if any(isinstance(part, str) and "\n" in part for part in parts) and each.name != "setup":
                problems.append(f"{each.name} holds a line break; write it on one line")
            if value == "" or "" in (value if isinstance(value, list) else ()):
                problems.append(f"{each.name} is empty; leave it out, or write null")
        if self.time is not None and self.time.upper() not in ("UNLIMITED", "INFINITE"):
            try:
                parse_time(self.time)
            except ValueError:
                problems.append(f"time={self.time!r} is no time; write HH:MM:SS or D-HH:MM:SS")
        if self.memory is not None and not re.fullmatch(r"\d+[KMGT]?", str(self.memory), re.IGNORECASE):
            problems.append(f"memory={self.memory!r} is no size; write 64G, 500M, or 0 for all of it")
        return problems

    def _names(self) -> list[str]:
        problems = [
            f"env.{name} is no name of a variable; use letters, digits and underscores"
            for name in self.env
            if not re.fullmatch(r"[A-Za-z_]\w*", name)
        ]
        for name in self.sbatch:
            plain = name.lstrip("-").replace("_", "-")
            if plain in OWN_OPTIONS:
                problems.append(f"sbatch.{name} has a field of its own; write launch.{OWN_OPTIONS[plain]}")
            elif not re.fullmatch(r"[a-z][a-z-]+", plain):
                problems.append(f"sbatch.{name} is no long option of sbatch; write it as sbatch's manual does")
        return problems

    def _together(self) -> list[str]:
        problems = []
        if self.kind == "local":
            given = [name for name in ("nodes", "gpus_per_node", "ranks_per_node", "partition") if getattr(self, name)]
            problems += [f"{name}={getattr(self, name)} is for a cluster; write launch=slurm" for name in given]
        if self.gpu_type and not self.gpus_per_node:
            problems.append(f"gpu_type={self.gpu_type} needs a number of them; set gpus_per_node")
        if self.mail_user and not self.mail_type:
            problems.append(f"mail_user={self.mail_user} needs an occasion; set mail_type=END,FAIL")
        if self.container_mounts and not self.container:
            problems.append("container_mounts needs a container; set container to an image")
        return problems

    def shape(self, plan: Plan) -> Shape:
        """Machines and ranks on each: what is given, and the rest from the plan. Whether they fit is checked later."""
        per_node = self.ranks_per_node or self.gpus_per_node or None
        if per_node is None:
            nodes = self.nodes or 1
            return Shape(nodes, max(plan.default_world_size(nodes) // nodes, 1))
        return Shape(self.nodes or max(plan.default_world_size(per_node) // per_node, 1), per_node)


def option_lines(options: dict[str, Any]) -> list[str]:
    """``{"time": "1:00", "exclusive": True}`` as sbatch writes it; what is null or false is left out."""
    given = {name.lstrip("-").replace("_", "-"): value for name, value in options.items()}
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in given.items()
        if value is not None and value is not False
    ]
