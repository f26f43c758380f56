"""Start a real SLURM on this machine: a controller and two virtual nodes with two fake GPUs each.

Host names of the nodes resolve only on the nodes (by a mount namespace with its own hosts file), as on clusters whose
compute nodes are unknown outside. Every process that is started here is also ended here, by its process id.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

LIBC = ctypes.CDLL(None)
NODES = ("n1", "n2")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare")
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "BOOT_FAIL")
CONFIGURATION = """
ClusterName=virtual
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
FirstJobId={first_job}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
EnforcePartLimits=ALL
ReturnToService=2
MpiDefault=none
JobRequeue=1
KillWait=60
GresTypes=gpu
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=4 RealMemory=8000 Gres=gpu:2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE GraceTime=60 State=UP
PartitionName=short Nodes=n[1-2] MaxTime=10 State=UP
PartitionName=urgent Nodes=n[1-2] PriorityTier=10 State=UP
"""


def missing() -> str:
    """Why this machine cannot run SLURM; empty if it can."""
    lacking = [name for name in PROGRAMS if _program(name) is None]
    if lacking:
        return f"no {', '.join(lacking)} (Debian: slurmctld slurmd slurm-client munge)"
    if os.geteuid() != 0:
        return "a SLURM of one's own needs root"
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, text=True)
    return f"no mount namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


class Cluster:
    """The running daemons of a cluster."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        munge = self.folder / "munge"
        for part in ("munge", "state", "spool", *(f"spool/{node}" for node in NODES)):
            (self.folder / part).mkdir(mode=0o755)
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o400)
        self._write_configuration()
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        self._daemon("munged", "--foreground", "--num-threads=2", *(f"--{k}={munge}/{v}" for k, v in files.items()))
        _until((munge / "socket").exists, 20, "munged does not start")
        self._daemon("slurmctld", "-D")
        for node in NODES:
            own = f"mount --bind {self.folder}/hosts /etc/hosts && exec {_program('slurmd')} -D -N {node}"
            self._daemon("unshare", "-m", "sh", "-c", own)
        _until(lambda: self.states() == ["idle"] * len(NODES), 60, f"no idle nodes: {self.states()}")

    def _write_configuration(self) -> None:
        ports = _free_ports(1 + len(NODES))
        host = socket.gethostname()
        # Ranks meet at a port that follows from the job's number, so two clusters must not number jobs alike.
        named = {"folder": self.folder, "host": host, "first_job": ports[0] * 7 % 17_000 + 1}
        text = CONFIGURATION.format(**named, port=ports[0], first=ports[1], last=ports[-1])
        (self.folder / "slurm.conf").write_text(text)
        for number in range(2):
            (self.folder / f"gpu{number}").touch()
        (self.folder / "gres.conf").write_text(f"NodeName=n[1-2] Name=gpu File={self.folder}/gpu[0-1]\n")
        own = "".join(f"127.0.0.1 {node}\n" for node in NODES)
        (self.folder / "hosts").write_text(Path("/etc/hosts").read_text() + own)

    def _daemon(self, name: str, *arguments: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as out:
            command = [str(_program(name)), *arguments]
            started = subprocess.Popen(
                command, stdout=out, stderr=out, start_new_session=True, preexec_fn=_end_with_parent
            )
            self.daemons.append(started)

    def stop(self) -> None:
        with suppress(subprocess.SubprocessError, AssertionError):  # daemons end even if this fails
            self.run("scancel", f"--user={os.geteuid()}")
            _until(lambda: not self.run("squeue", "-h"), 20, "jobs are left")
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in self._steps():
            with suppress(psutil.Error):
                process.kill()

    def _steps(self) -> list[psutil.Process]:
        """Processes of jobs. No daemon is their parent: slurmd forks slurmstepd twice, so that steps outlive it.

        Tasks have SLURM_CONF in their environment; slurmstepd, which overwrites its own, is found as their parent.
        """
        found, ours = [], set(psutil.Process().children(recursive=True))
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process in ours or process.environ().get("SLURM_CONF") != str(self.folder / "slurm.conf"):
                    continue
                found.append(process)
                above = process.parent()
                if above is not None and above.name().startswith("slurmstepd"):
                    found.append(above)
        return found

    # -- what tests ask for -------------------------------------------------------------------------------------

    def run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout.strip()

    def states(self) -> list[str]:
        found = subprocess.run(["sinfo", "-h", "-N", "-p", "main", "-o", "%t"], capture_output=True, text=True)
        return found.stdout.split()

    def state(self, job: str) -> str:
        return self.show(job)["JobState"]

    def show(self, job: str) -> dict[str, str]:
        """The fields of ``scontrol show job``."""
        words = self.run("scontrol", "--oneliner", "show", "job", job).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, job: str, *states: str, timeout: float = 400) -> dict[str, str]:
        """Wait until the job is in one of these states (default: has ended)."""
        wanted = states or ENDED
        _until(lambda: self.state(job) in wanted, timeout, f"job {job} does not come to {wanted}", 0.2)
        return self.show(job)


@contextmanager
def cluster() -> Iterator[Cluster]:
    """Context with a cluster, which every command finds by SLURM_CONF."""
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))
    folder.chmod(0o755)  # munged checks the permissions of its folders
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    running = Cluster(folder)
    try:
        running.start()
        yield running
    finally:
        running.stop()
        if before is None:
            del os.environ["SLURM_CONF"]
        else:
            os.environ["SLURM_CONF"] = before
        shutil.rmtree(folder, ignore_errors=True)


def _end_with_parent() -> None:
    """End a daemon with its test session, so that a killed session leaves no cluster behind."""
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _until(condition, timeout: float, complaint: str, pause: float = 0.05) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, complaint
        time.sleep(pause)


def _free_ports(count: int) -> Sequence[int]:
    """Neighbouring ports that nobody listens on."""
    for first in range(30_100 + os.getpid() % 600 * count, 32_700, count):
        ports = range(first, first + count)
        with suppress(OSError):
            for port in ports:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return ports
    raise AssertionError("no free ports")
