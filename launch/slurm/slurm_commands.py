"""Run SLURM's commands (sbatch, squeue ...), and turn their failures into messages that say what to do."""

from __future__ import annotations

import shutil
import subprocess

from ...errors import Problem, UserError

SECONDS = 120
"""Time limit of a command, which may have to wait for the controller."""
SILENCE = ("unable to contact slurm controller", "connect failure", "timed out", "zero bytes were transmitted")
"""Parts of messages that mean: the controller did not answer."""
CLUSTER = "see whether the cluster is up: scontrol ping"
NO_CLUSTER = ("configuration source", "slurm.conf", "unable to process configuration")
"""Words in messages of commands that are installed on a machine without a cluster."""
ELSEWHERE = (
    "run it on a login node of the cluster; here `trireme train` trains, `trireme logs RUN -f` follows a run, and "
    "`trireme launch --dry-run` prints the script of a job"
)
FIELDS = {
    "partition": "launch.partition",
    "account": "launch.account",
    "qos": "launch.qos",
    "time limit": "launch.time",
    "feature": "launch.constraint",
    "memory": "launch.memory",
    "generic resource": "launch.gpus_per_node",
    "gres": "launch.gpus_per_node",
    "gpu": "launch.gpus_per_node",
    "dependency": "launch.sbatch",
    "reservation": "launch.sbatch",
    "unrecognized option": "launch.sbatch",
    "node configuration": "launch",
    "node count": "launch.nodes",
}
"""Words in a refusal, and the key of the recipe that they concern."""


class NoAnswer(UserError):
    """The controller did not answer in time; it may have carried out the command nevertheless."""


class Refused(Exception):
    """A SLURM command failed; the text is its message."""


def slurm(command: str, *arguments: str) -> str:
    """Run one of SLURM's commands; returns what it prints.

    Raises:
        UserError: SLURM is not installed.
        NoAnswer: the controller does not answer.
        Refused: the command failed.
    """
    require(command)
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        why = f"has not answered for {SECONDS} s"
        raise NoAnswer(Problem(command, why, CLUSTER)) from None
    if done.returncode == 0:
        return done.stdout
    text = _plain(done.stderr or done.stdout, command)
    if any(words in text.lower() for words in NO_CLUSTER):
        raise UserError(
            Problem("SLURM", f"is not set up here: {command} finds no configuration of a cluster", ELSEWHERE)
        )
    if any(words in text.lower() for words in SILENCE):
        raise NoAnswer(Problem(command, text, CLUSTER))
    raise Refused(text)


def require(command: str) -> None:
    """Make sure that a SLURM command exists here.

    Raises:
        UserError: it does not.
    """
    if shutil.which(command) is None:
        why = f"is not installed here, so there is no cluster to ask (no {command})"
        raise UserError(Problem("SLURM", why, ELSEWHERE))


def submit(script: str, *options: str) -> str:
    """Hand a script to sbatch; returns the number of the job.

    Raises:
        UserError: sbatch refuses it.
    """
    try:
        return slurm("sbatch", "--parsable", *options, script).strip().partition(";")[0]
    except Refused as error:
        text = str(error)
        field = next((field for words, field in FIELDS.items() if words in text.lower()), "launch")
        fix = "change it as the message asks; `sinfo` shows partitions, nodes and limits"
        raise UserError(Problem(field, f"was refused by sbatch: {text}", fix)) from None


def _plain(text: str, command: str) -> str:
    """The message on one line, without ``sbatch: error:`` before it."""
    lines = [line.removeprefix(f"{command}: ").removeprefix("error: ").strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines))) or "no reason given"
