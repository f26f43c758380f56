"""SLURM's commands, and what they say when they refuse."""

from __future__ import annotations

import shutil
import subprocess

from ...errors import Problem, UserError

SECONDS = 120
"""How long a command may wait for the controller."""
SILENCE = ("unable to contact slurm controller", "connect failure", "timed out", "zero bytes were transmitted")
"""Words that say that the controller did not answer."""
CLUSTER = "see whether the cluster is up: scontrol ping"
NOT_INSTALLED = "run it on a login node of the cluster; `trireme launch --dry-run` prints the script anywhere"
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
"""Words in a refusal -> what to look at."""


class NoAnswer(UserError):
    """SLURM's controller could not be asked, or not in time: what was asked for may have been done all the same."""


class Refused(Exception):
    """A command of SLURM ended with an error; the text is what it said."""


def slurm(command: str, *arguments: str) -> str:
    """Run one of SLURM's commands; returns what it prints.

    Raises:
        UserError: it is not installed; NoAnswer: its controller does not answer.
        Refused: it ended with an error.
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
    if any(words in text.lower() for words in SILENCE):
        raise NoAnswer(Problem(command, text, CLUSTER))
    raise Refused(text)


def require(command: str) -> None:
    """Refuse early where SLURM is not installed.

    Raises:
        UserError: it is not.
    """
    if shutil.which(command) is None:
        raise UserError(Problem(command, "cannot be found: SLURM is not installed here", NOT_INSTALLED))


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
        fix = "change it, or what else the cluster asks for; `sinfo` shows partitions, nodes and limits"
        raise UserError(Problem(field, f"was refused by sbatch: {text}", fix)) from None


def _plain(text: str, command: str) -> str:
    """``sbatch: error: Batch job submission failed: Invalid account`` without the first two, on one line."""
    lines = [line.removeprefix(f"{command}: ").removeprefix("error: ").strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(filter(None, lines))) or "no reason given"
