"""Tests that commands work, or refuse in one message, where none of the optional packages is installed."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[3]

SCRIPT = """
import contextlib, io, json, sys
for name in json.loads(sys.argv[1]):
    sys.modules[name] = None  # an import then fails, as without the package
from trireme.launch.cli import main
for command in json.loads(sys.argv[2]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command)
    print(json.dumps([code, err.getvalue()]))
"""
MODULES = {"mlflow-skinny": "mlflow", "pillow": None, "liger-kernel": "liger_kernel", "scikit-learn": "sklearn"}
"""Package -> module of another name; None for one that others need."""
COMMANDS = {
    ("keys",): 0,
    ("keys", "nope"): 2,
    ("keys", "search"): 0,
    ("recipes",): 0,
    ("doctor",): 0,
    ("plans", "pretrain/persimmon_stdlib"): 0,
    ("check", "pretrain/persimmon_stdlib"): 0,
    ("check", "pretrain/persimmon_stdlib", "search=optuna"): 2,
    ("completion", "bash"): 0,
}


def test_commands_need_no_optional_package() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        text.partition(">")[0].partition("[")[0] for name, each in extras.items() if name != "dev" for text in each
    }
    modules = [MODULES.get(name, name) for name in sorted(named - {"ninja", "sqlalchemy", "alembic"})]
    given = [json.dumps([name for name in modules if name]), json.dumps([*COMMANDS])]
    ran = subprocess.run([sys.executable, "-c", SCRIPT, *given], capture_output=True, text=True, check=True, cwd=ROOT)
    found = [json.loads(line) for line in ran.stdout.splitlines() if line.startswith("[")]
    assert len(found) == len(COMMANDS), ran.stdout + ran.stderr
    for (command, wanted), (code, told) in zip(COMMANDS.items(), found, strict=True):
        assert code == wanted and "Traceback" not in told, (command, told)
