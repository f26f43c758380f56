"""Write the SLURM batch script of a job from a recipe's ``launch`` part.

The script is self-contained, since SLURM may run it again after a preemption, days after it was written. Beside
starting the tasks it has two duties. It passes signals on to them, because SLURM sends the warning before the time
limit to the script alone. It queues the job again when the ranks exit with code 75, which means that they have stopped
early and saved.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..error_report import DIVERGED, SAVED
from ..launch_config import LaunchConfig, Shape, option_lines
from .job_task import FIRST_PORT, LOGS, NODE_STORAGE, PORTS

NAME = "slurm.sbatch"
"""Name of the script in the run folder."""
TOO_EARLY = 128 + signal.SIGUSR1
"""Exit code of ranks that SIGUSR1 ended before training began."""
LAGGING = 60
"""Seconds that the other tasks get to end after the first one has ended."""


@dataclass(frozen=True)
class Run:
    """The run that a SLURM job, or one task of an array, trains."""

    dir: Path
    """The run folder, absolute."""
    arguments: list[str]
    """Arguments of ``trireme train``."""


@dataclass(frozen=True)
class Script:
    """Everything that goes into the script."""

    launch: LaunchConfig
    shape: Shape
    name: str
    """Name of the job."""
    folder: Path
    """Folder of the script and of ``logs``; absolute."""
    work_dir: Path
    """Folder that relative paths of the recipe start from; absolute."""
    runs: Sequence[Run]
    """One run, or one for each task of an array."""
    reads: Sequence[Path] = ()
    """Folders that the recipe was read from; absolute."""
    max_restarts: int = 0
    command: str = ""
    """Arguments of ``python`` for each task; empty starts ranks."""

    @property
    def path(self) -> Path:
        return self.folder / NAME

    @property
    def log(self) -> str:
        """File for the job's output, with SLURM's patterns (``%j``)."""
        if self.launch.log:
            return str(self.work_dir / self.launch.log)
        folder = str(self.folder / "logs").replace("%", "%%")
        return f"{folder}/slurm_{'%A_%a' if self.is_array else '%j'}.log"

    def log_of(self, number: str, task: int = 0) -> str:
        """``log`` of one job, or of one task of an array, with the patterns filled in."""
        values = {"%": "%", "j": number, "A": number, "a": str(task), "x": self.name}
        return re.sub(r"%(.)", lambda match: values.get(match[1], match[0]), self.log)

    @property
    def is_array(self) -> bool:
        return len(self.runs) > 1

    def text(self) -> str:
        parts = [self._options(), [ABOUT], self._environment(), self._run(), self._tasks(), self._end()]
        return "#!/bin/bash\n" + "\n\n".join("\n".join(part) for part in parts if part) + "\n"

    # -- what SLURM reads ---------------------------------------------------------------------------------------

    def _options(self) -> list[str]:
        launch, shape = self.launch, self.shape
        by_node = launch.tasks == "node"
        gpus = f"{launch.gpu_type}:{launch.gpus_per_node}" if launch.gpu_type else str(launch.gpus_per_node)
        last = len(self.runs) - 1
        options = {
            "job-name": self.name,
            "array": (f"0-{last}" + (f"%{launch.at_once}" if launch.at_once else "")) if self.is_array else None,
            "nodes": shape.nodes,
            "ntasks-per-node": 1 if by_node else shape.ranks_per_node,
            "cpus-per-task": self._cpus(),
            "gpus-per-node": gpus if launch.gpus_per_node else None,
            "mem": launch.memory,
            "time": launch.time,
            "partition": launch.partition,
            "account": launch.account,
            "qos": launch.qos,
            "constraint": launch.constraint,
            "signal": f"B:USR1@{launch.signal_seconds}" if launch.signal_seconds else None,
            "requeue" if launch.requeue else "no-requeue": True,
            "mail-user": launch.mail_user,
            "mail-type": launch.mail_type,
            "chdir": str(self.work_dir),
            "output": self.log,
            "open-mode": "append",
            **launch.sbatch,
        }
        return [f"#SBATCH {_quoted(line)}" for line in option_lines(options)]

    def _cpus(self) -> int | None:
        """Cores of one task; None leaves it to SLURM."""
        each = self.launch.cpus_per_rank
        if each is None:
            return None
        return each * (self.shape.ranks_per_node if self.launch.tasks == "node" else 1)

    # -- what the shell does ------------------------------------------------------------------------------------

    def _environment(self) -> list[str]:
        launch = self.launch
        lines = [f"module load {shlex.join(launch.modules)}"] if launch.modules else []
        lines += [f"export {name}={shlex.quote(str(value))}" for name, value in launch.env.items()]
        lines += [f"export {NODE_STORAGE}={shlex.quote(launch.node_storage)}"] if launch.node_storage else []
        # A setup line may use set -e or cd; neither may reach the lines below.
        lines += [*launch.setup, "set +eu", f"cd {shlex.quote(str(self.work_dir))}"] if launch.setup else []
        port = str(launch.port) if launch.port else f"$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))"
        return [
            *lines,
            'MASTER_ADDR="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"',
            f"MASTER_PORT={port}",
            'TRIREME_STARTED="$(date +%s)"',
            "export MASTER_ADDR MASTER_PORT TRIREME_STARTED",
        ]

    def _run(self) -> list[str]:
        """Sets ``run`` and ``arguments``: of the only run, or of this task of the array."""
        if not self.is_array:
            return list(_assigned(self.runs[0]))
        lines = ['case "$SLURM_ARRAY_TASK_ID" in']
        for index, run in enumerate(self.runs):
            lines += [f"{index})", *(f"    {line}" for line in _assigned(run)), "    ;;"]
        return [*lines, "esac"]

    def _tasks(self) -> list[str]:
        """The srun command, and the command that each task runs."""
        launch, shape = self.launch, self.shape
        if self.command:
            command = self.command
        elif launch.tasks == "node":
            restarts = f" --max-restarts {self.max_restarts}" if self.max_restarts else ""
            command = f'-m trireme.launch.slurm.job_node --ranks {shape.ranks_per_node}{restarts} --logs "${LOGS}"'
        else:
            command = "-u -m trireme.launch.train"
        cpus = self._cpus()
        # srun no longer inherits --cpus-per-task from sbatch; a task that fails must not end one that still saves.
        options = [f"--wait={LAGGING}", "--kill-on-bad-exit=0", *([f"--cpus-per-task={cpus}"] if cpus else [])]
        return [
            f'export {LOGS}="$run/logs/slurm_$SLURM_JOB_ID.${{SLURM_RESTART_COUNT:-0}}"',
            f"srun {shlex.join([*options, *self._container(), *launch.srun])} \\",
            f"    {self._prefix()}{self._python()} {command} \\",
            '    "${arguments[@]}" &',
        ]

    def _container(self) -> list[str]:
        """Options with which srun starts a container through pyxis."""
        if not self.launch.container or self.launch.container_engine != "pyxis":
            return []
        mounts = [f"{folder}:{folder}" for folder in self._seen()]
        return [
            f"--container-image={self.launch.container}",
            f"--container-mounts={','.join([*mounts, *self.launch.container_mounts])}",
            f"--container-workdir={self.work_dir}",
        ]

    def _prefix(self) -> str:
        """Words before each task's command: wrappers, and apptainer with its options."""
        launch, words = self.launch, list(self.launch.wrap)
        if launch.container and launch.container_engine == "apptainer":
            binds = [part for mount in (*self._seen(), *launch.container_mounts) for part in ("--bind", str(mount))]
            gpu = ["--nv"] if launch.gpus_per_node else []
            words += ["apptainer", "exec", *gpu, *binds, "--pwd", str(self.work_dir), launch.container]
        return f"{shlex.join(words)} " if words else ""

    def _seen(self) -> list[Path]:
        """Folders of the host that a container must see: the working folder, run folders and recipe folders. Each is
        named twice, as it was given and with links resolved."""
        named = [
            Path(os.path.abspath(f)) for f in (self.work_dir, self.folder, *(r.dir for r in self.runs), *self.reads)
        ]
        seen: list[Path] = []
        for folder in [*named, *(Path(os.path.realpath(folder)) for folder in named)]:
            if not any(outer == folder or outer in folder.parents for outer in seen):
                seen.append(folder)
        return seen

    def unmountable(self) -> list[Path]:
        """Folders whose names pyxis and apptainer would split (at a comma or colon), so that they cannot be mounted."""
        return [folder for folder in self._seen() if self.launch.container and re.search("[,:]", str(folder))]

    def _end(self) -> list[str]:
        """Wait for the tasks, print the failure, queue the job again."""
        most = self.launch.max_requeues
        again = [
            f'if [ "$code" = {SAVED} ] && [ -n "$again" ]; then',
            f'    if [ "${{SLURM_RESTART_COUNT:-0}}" -lt {most} ]; then',
            '        echo "job $SLURM_JOB_ID is queued again and goes on from what it has saved"',
            '        scontrol requeue "$SLURM_JOB_ID"',
            "    else",
            f'        echo "job $SLURM_JOB_ID has been queued again {most} times: raise launch.max_requeues to go on"',
            "    fi",
            "fi",
        ]
        too_early = [
            f'if [ "$code" = {TOO_EARLY} ]; then',
            '    echo "job $SLURM_JOB_ID was told to leave before its first step: there was nothing to save;'
            ' give it more time (launch.time)"',
            "fi",
        ]
        return [*WAIT, *self._verdict(), *too_early, *(again if self.launch.requeue else []), 'exit "$code"']

    def _verdict(self) -> list[str]:
        """Prints the failure that came first; needed where several ranks or machines may have failed."""
        if self.launch.tasks == "node" and self.shape.nodes == 1:
            return []
        one = ["srun", "--nodes=1", "--ntasks=1", *self._container()] if self.launch.container else []
        command = f'{self._python()} -m trireme.launch.slurm.job_failure "${LOGS}" {self.shape.world_size} "$code"'
        where = f"{shlex.join(one)} {self._prefix()}" if one else ""
        return [
            f'case "$code" in 0|{SAVED}|{DIVERGED}|{TOO_EARLY}) ;; *)',
            f"    {where}{command} ;;",
            "esac",
        ]

    def _python(self) -> str:
        launch = self.launch
        return shlex.quote(launch.python or ("python" if launch.container else sys.executable))


ABOUT = """\
# Written by `trireme launch` from the recipe and submitted by `sbatch`; SLURM may run it several times. Before the
# time limit SLURM sends SIGUSR1 to this script, `trireme cancel` SIGUSR2, a preemption SIGTERM: the ranks are told,
# save, and leave with code 75."""
WAIT = """\
step=$!
again=yes
trap 'kill -s USR1 "$step" 2>/dev/null' USR1
trap 'again=; kill -s USR2 "$step" 2>/dev/null' USR2
trap 'again=; kill -s USR1 "$step" 2>/dev/null' TERM    # not TERM, at which srun kills its tasks
wait "$step"; code=$?
while kill -0 "$step" 2>/dev/null; do wait "$step"; code=$?; done    # a signal ends a wait
wait "$step"; code=$?""".splitlines()


def _assigned(run: Run) -> Iterator[str]:
    yield f"run={shlex.quote(str(run.dir))}"
    yield f"arguments=({shlex.join(run.arguments)})"


def _quoted(option: str) -> str:
    """Quote an option for an #SBATCH line: sbatch splits the line at spaces and comments unless they are quoted."""
    name, equals, value = option.partition("=")
    if not equals or not any(character in value for character in " \t#'\"\\"):
        return option
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}="{escaped}"'
