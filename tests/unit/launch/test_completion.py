"""Tab completion of commands, recipes, groups, options, keys and values; and through a real bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from trireme.launch.cli import COMMANDS
from trireme.launch.completion import complete, script

RECIPE = "pretrain/persimmon_stdlib"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["tr"], ["train"]),
        (["train", "pretrain/pers"], [RECIPE]),
        (["train", RECIPE, "plan=s"], ["plan=single"]),
        (["train", "--nproc", "2", RECIPE, "trainer.max_s"], ["trainer.max_steps="]),
        (["check", RECIPE, "plan=ddp", "optimizer.l"], ["optimizer.lr="]),
        (["train", RECIPE, "scheduler.name="], ["scheduler.name=cosine"]),
        (["train", RECIPE, "--mul"], ["--multirun"]),
        (["launch", RECIPE, "launch=s"], ["launch=slurm"]),
        (["launch", RECIPE, "launch.nod"], ["launch.node_storage=", "launch.nodes="]),
        (["launch", RECIPE, "--dry"], ["--dry-run"]),
        (["evaluate", RECIPE, "--j"], ["--json"]),
        (["evaluate", "--checkpoint", "runs/x", RECIPE, "plan=zero2"], ["plan=zero2", "plan=zero2_offload"]),
        (["train", "no/such", "tr"], []),
        (["recipes", ""], []),
    ],
)
def test_completion(words: list[str], expected: list[str]) -> None:
    assert complete(words, COMMANDS) == expected


def test_hidden_commands_stay_hidden() -> None:
    assert not [name for name in complete([""], COMMANDS) if name.startswith("_")]


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    ("line", "expected"), [("trireme gen", "generate"), (f"trireme train {RECIPE} plan=dd", "ddp")]
)
def test_script_in_bash(line: str, expected: str, tmp_path: Path) -> None:
    command = tmp_path / "trireme"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m trireme.launch.cli "$@"\n')
    command.chmod(0o755)
    program = (
        f"{script('bash')}\nCOMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=($COMP_LINE); "
        "COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); _trireme; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    result = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.split() == [expected]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell: str) -> None:
    assert "trireme __complete" in script(shell)
