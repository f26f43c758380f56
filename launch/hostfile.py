"""Report a missing hostfile of DeepSpeed's launcher; without this check, DeepSpeed would silently train on one host.

The launcher does not tell ranks the path of the hostfile. But the launcher is an ancestor process of each rank, so the
path is read from the launcher's command line.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import Problem, UserError

GENERATIONS = 3
"""Ancestors to search: between a rank and ``deepspeed`` are DeepSpeed's per-host launcher and maybe a shell."""


def refuse_missing_hostfile() -> None:
    """Refuse to train on one host if the hostfile that should name several does not exist.

    Raises:
        UserError: ``deepspeed --hostfile FILE`` started this rank, and there is no such file.
    """
    import psutil

    try:
        for launcher in psutil.Process().parents()[:GENERATIONS]:
            file = hostfile_of(launcher.cmdline())
            if file and not Path(launcher.cwd(), file).is_file():
                why = "there is no such file; DeepSpeed would train on this host alone"
                raise UserError(Problem("--hostfile", why, "name one with lines like: HOST slots=8", file))
    except psutil.Error:
        return  # the process is gone or may not be inspected


def hostfile_of(command: Sequence[str]) -> str | None:
    """The hostfile in a command line of DeepSpeed's launcher; None for other commands or without one."""
    names = [os.path.basename(word) for word in command[:3]]
    if not {"deepspeed", "ds", "deepspeed.launcher.runner"} & set(names):
        return None
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-H", "--hostfile")
    return parser.parse_known_args(list(command))[0].hostfile
