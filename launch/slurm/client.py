"""SLURM's commands, and what they say when they refuse."""

from __future__ import annotations

import shutil
import subprocess

from ... import Problem, UserError

SECONDS = 120
"""How long a command may wait for the controller."""
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


class Refused(Exception):
    """A command of SLURM ended with an error; the text is what it said."""


def slurm(command: str, *arguments: str) -> str:
    """Run one of SLURM's commands; returns what it prints.

    Raises:
        UserError: it is not installed, or its controller does not answer.
        Refused: it ended with an error.
    """
    require(command)
    try:
        done = subprocess.run([command, *arguments], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        why = f"has not answered for {SECONDS} s"
        raise UserError(Problem(command, why, "see whether the cluster is up: scontrol ping")) from None
    if done.returncode == 0:
        return done.stdout
    text = _plain(done.stderr or done.stdout, command)
    if any(words in text.lower() for words in ("unable to contact slurm controller", "connect failure")):
        raise UserError(Problem(command, text, "see whether the cluster is up: scontrol ping"))
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
