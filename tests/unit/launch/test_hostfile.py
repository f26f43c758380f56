"""The path of DeepSpeed's hostfile is read from the command line of DeepSpeed's launcher."""

from __future__ import annotations

import pytest
from trireme.launch.hostfile import hostfile_of, refuse_missing_hostfile

TRAIN = "--module trireme.launch.train recipe plan=zero2"


@pytest.mark.parametrize(
    ("command", "file"),
    [
        (f"/bin/python3 /venv/bin/deepspeed --hostfile hosts {TRAIN}", "hosts"),
        (f"/venv/bin/deepspeed -H hosts --include a:0 {TRAIN}", "hosts"),
        (f"python -m deepspeed.launcher.runner --hostfile=sub/hosts {TRAIN}", "sub/hosts"),
        (f"python /venv/bin/deepspeed --num_gpus 2 {TRAIN}", None),
        (f"python -m deepspeed.launcher.launch --hostfile hosts {TRAIN}", None),
        (f"python -m other --hostfile hosts {TRAIN}", None),
        ("", None),
    ],
)
def test_the_hostfile_of_a_command(command: str, file: str | None) -> None:
    assert hostfile_of(command.split()) == file


def test_other_parents_are_left_alone() -> None:
    refuse_missing_hostfile()
