"""Run the ``trireme`` command from a test, in a new process or in the test's own. ``refused`` asserts that a command
ended with one error message and without a traceback.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.recipes import FEW_FILES, TINY
from helpers.started import start

ROOTS = "data.source.roots=[" + ",".join(FEW_FILES) + "]"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trireme.launch.cli", *arguments]


def tiny_command(run_dir: Path, *arguments: str) -> list[str]:
    return command("train", str(TINY), ROOTS, f"run.dir={run_dir}", *arguments)


def trireme(*arguments: str, timeout: float = 120, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command to its end; its output is text."""
    process = start(command(*arguments), os.environ, cwd)
    try:
        output, errors = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode is not None
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


def trireme_here(capsys: pytest.CaptureFixture[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in this process, which saves the seconds of the imports."""
    from trireme.launch.cli import main

    code = main(arguments)
    output, errors = capsys.readouterr()
    return subprocess.CompletedProcess(arguments, code, output, errors)


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    """Assert that the run ended as a user error: exit code 2, one message with all ``words``, no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr, result.stderr
