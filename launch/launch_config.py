"""The ``launch`` part of a recipe: where ``trireme launch`` starts the run, and with which resources.

The dataclass only holds and checks values; ``slurm/job_script.py`` writes the script of a job from them. Nothing else
of ``launch`` is imported here, so that ``configs/schema.py`` can import the dataclass.
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
"""Options of sbatch -> field of ``LaunchConfig`` that replaces them."""
FOR_RANKS = "the number of ranks follows from launch.nodes and launch.ranks_per_node (or launch.gpus_per_node)"


@dataclass(frozen=True)
class Shape:
    """Number of machines and of ranks on each."""

    nodes: int
    ranks_per_node: int

    @property
    def world_size(self) -> int:
        return self.nodes * self.ranks_per_node


@dataclass
class LaunchConfig:
    """Where ``trireme launch`` starts a run. ``trireme train`` always trains on this machine and ignores these keys."""

    kind: Literal["local", "slurm"] = "local"
    """Where the run is started. local: on this machine, as by ``trireme train``. slurm: in a job of a SLURM cluster."""

    nodes: int | None = None
    """Number of machines; null takes as many as the plan's degrees need."""
    gpus_per_node: int = 0
    """GPUs per machine, with one rank on each; 0 trains on the CPU."""
    gpu_type: str | None = None
    """Type of GPU to request, by the cluster's name for it (``a100``)."""
    ranks_per_node: int | None = None
    """Ranks per machine; null takes one per GPU, or without GPUs divides the plan's ranks among the machines."""
    tasks: Literal["node", "rank"] = "node"
    """Tasks that SLURM starts. node: one launcher per machine (torch's elastic agent), which starts the ranks there and
    restarts them after a failure (``--max-restarts``). rank: every rank."""
    cpus_per_rank: int | None = None
    """CPU cores per rank; null takes the cluster's default."""
    memory: str | int | None = None
    """Memory per machine in SLURM's notation (``64G``); 0 takes all of it; null takes the cluster's default."""
    time: str | None = None
    """Time limit of the job: "HH:MM:SS" or "D-HH:MM:SS", quoted in YAML; null takes the partition's."""

    partition: str | None = None
    """Partition of the cluster, or several separated by commas; null takes the cluster's default."""
    account: str | None = None
    """Account that the job is charged to."""
    qos: str | None = None
    """Quality of service (QOS) of the job."""
    constraint: str | None = None
    """Features that the machines must have."""
    job_name: str | None = None
    """Name of the job; null takes the recipe's."""
    mail_user: str | None = None
    """Address for mail about the job."""
    mail_type: str | None = None
    """Events that send mail: ``END,FAIL`` ..."""
    sbatch: dict[str, str | int | bool] = field(default_factory=dict)
    """Further ``#SBATCH`` lines by the long name of the option: ``{reservation: mine, exclusive: true}``."""
    srun: list[str] = field(default_factory=list)
    """Further options of srun, which starts the tasks, such as ``[--gpu-bind=none, --mpi=none]``."""

    signal_seconds: int | None = 120
    """Seconds before the time limit at which SLURM sends SIGUSR1, so that ranks save and leave; null sends none."""
    requeue: bool = True
    """Queue the job again after an early stop with everything saved, a preemption, or the loss of a machine."""
    max_requeues: int = 100
    """How often the job is queued again; preemptions count."""
    at_once: int | None = None
    """Most jobs of a sweep that run at the same time; null sets no limit."""

    modules: list[str] = field(default_factory=list)
    """Environment modules that the job loads."""
    setup: list[str] = field(default_factory=list)
    """Lines of shell that run on the first machine before the tasks start."""
    env: dict[str, str | int] = field(default_factory=dict)
    """Environment variables of the ranks."""
    python: str | None = None
    """Python of the ranks; null takes the Python that runs this command, or ``python`` in a container."""
    container: str | None = None
    """Container image in which the ranks run."""
    container_engine: Literal["pyxis", "apptainer"] = "pyxis"
    """How containers are run. pyxis: by srun's plugin (``--container-image``). apptainer: by ``apptainer exec``, which
    also takes singularity images."""
    container_mounts: list[str] = field(default_factory=list)
    """Further folders to mount in the container, as ``SOURCE:TARGET``; working and run folder are always mounted."""
    wrap: list[str] = field(default_factory=list)
    """Command that wraps each task, such as ``[numactl, --localalloc]``."""
    node_storage: str | None = None
    """Folder on a local disk of each machine, such as ``/scratch/$SLURM_JOB_ID`` (variables are expanded there). It
    holds prepared data and compiled kernels; ``$TRIREME_NODE_STORAGE`` names it, also in DeepSpeed's ``nvme_path``."""
    port: int | None = None
    """Port on the first machine for the rendezvous; null derives one from the number of the job."""
    log: str | None = None
    """File for the output of the job, with SLURM's patterns; null takes ``logs/slurm_%j.log`` in the run folder."""

    REPLACED: ClassVar[dict[str, tuple[str, str]]] = {
        "cpus_per_task": ("changes its meaning with launch.tasks=rank", "write launch.cpus_per_rank"),
        "ntasks": (FOR_RANKS, "leave it out"),
        "ntasks_per_node": (FOR_RANKS, "write launch.ranks_per_node"),
        "tasks_per_node": (FOR_RANKS, "write launch.ranks_per_node"),
        "mem": ("is called memory", "write launch.memory"),
        "gpus": ("is asked for by machine", "write launch.nodes and launch.gpus_per_node"),
        "timeout_min": ("is called time", "write launch.time=HH:MM:SS"),
        "signal": (
            "is always SIGUSR1, sent to the job's script",
            "write launch.signal_seconds for the seconds before the time limit",
        ),
        "output": ("is called log", "write launch.log"),
        "max_num_timeout": ("is called max_requeues", "write launch.max_requeues"),
        "additional_parameters": ("is called sbatch", "write launch.sbatch={name: value}"),
    }
    """Names from sbatch and other launchers -> reason against them, and what to write here."""

    def __post_init__(self) -> None:
        refuse([*self._numbers(), *self._texts(), *self._names(), *self._together()])

    def _numbers(self) -> list[str]:
        least = {"nodes": 1, "gpus_per_node": 0, "ranks_per_node": 1, "cpus_per_rank": 1, "signal_seconds": 1,
                 "max_requeues": 0, "at_once": 1, "port": 1024}  # fmt: skip
        values = {name: getattr(self, name) for name in least}
        problems = [
            f"{name}={value} must be at least {least[name]}; write {least[name]} or more"
            for name, value in values.items()
            if value is not None and value < least[name]
        ]
        if self.signal_seconds is not None and self.signal_seconds > 65535:
            problems.append(f"signal_seconds={self.signal_seconds} is more than SLURM takes; use at most 65535")
        if self.port is not None and self.port > 65535:
            problems.append(f"port={self.port} is not a port; use 1024 to 65535")
        return problems

    def _texts(self) -> list[str]:
        """Problems of texts that would break the script or that SLURM would refuse."""
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
                problems.append(f"time={self.time!r} is not a time; write HH:MM:SS or D-HH:MM:SS")
        if self.memory is not None and not re.fullmatch(r"\d+[KMGT]?", str(self.memory), re.IGNORECASE):
            problems.append(f"memory={self.memory!r} is not a size; write 64G, 500M, or 0 for all of it")
        return problems

    def _names(self) -> list[str]:
        problems = [
            f"env.{name} is not the name of a variable; use letters, digits and underscores"
            for name in self.env
            if not re.fullmatch(r"[A-Za-z_]\w*", name)
        ]
        for name in self.sbatch:
            plain = name.lstrip("-").replace("_", "-")
            if plain in OWN_OPTIONS:
                problems.append(f"sbatch.{name} is a key of launch; write launch.{OWN_OPTIONS[plain]}")
            elif not re.fullmatch(r"[a-z][a-z-]+", plain):
                problems.append(f"sbatch.{name} is not a long option of sbatch; write it as sbatch's manual does")
        return problems

    def _together(self) -> list[str]:
        problems = []
        if self.kind == "local":
            given = [name for name in ("nodes", "gpus_per_node", "ranks_per_node", "partition") if getattr(self, name)]
            problems += [f"{name}={getattr(self, name)} is for a cluster; write launch=slurm" for name in given]
        if self.gpu_type and not self.gpus_per_node:
            problems.append(f"gpu_type={self.gpu_type} needs the number of GPUs; set gpus_per_node")
        if self.mail_user and not self.mail_type:
            problems.append(f"mail_user={self.mail_user} needs the events that send mail; set mail_type=END,FAIL")
        if self.container_mounts and not self.container:
            problems.append("container_mounts needs a container; set container to an image")
        return problems

    def shape(self, plan: Plan) -> Shape:
        """Machines and ranks per machine, as given or else derived from the plan. Whether they fit is checked later."""
        per_node = self.ranks_per_node or self.gpus_per_node or None
        if per_node is None:
            nodes = self.nodes or 1
            return Shape(nodes, max(plan.default_world_size(nodes) // nodes, 1))
        return Shape(self.nodes or max(plan.default_world_size(per_node) // per_node, 1), per_node)


def option_lines(options: dict[str, Any]) -> list[str]:
    """Options such as ``{"time": "1:00", "exclusive": True}`` as words for sbatch, without those null or false."""
    given = {name.lstrip("-").replace("_", "-"): value for name, value in options.items()}
    return [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in given.items()
        if value is not None and value is not False
    ]
