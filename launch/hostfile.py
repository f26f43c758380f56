"""DeepSpeed's launcher, given a hostfile that does not exist, trains on this host alone: here the ranks refuse that.

Nothing tells a rank which hostfile its launcher was given, but the launcher is one of its ancestors, with its command
line.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import Problem, UserError

GENERATIONS = 3
"""Between a rank and ``deepspeed`` lies DeepSpeed's starter of the ranks of one host, and maybe a shell."""


def refuse_missing_hostfile() -> None:
    """Refuse to train on one host where a hostfile was to name several.

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
        return  # not ours to look at


def hostfile_of(command: Sequence[str]) -> str | None:
    """The hostfile that this command line gives to DeepSpeed's launcher, if it is one and does."""
    names = [os.path.basename(word) for word in command[:3]]
    if not {"deepspeed", "ds", "deepspeed.launcher.runner"} & set(names):
        return None
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-H", "--hostfile")
    return parser.parse_known_args(list(command))[0].hostfile
