"""The built wheel contains every file that a run needs, and works without a clone of the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "__init__.py", "errors.py", "version.py",
           "configs", "launch", "models", "parallel", "recipes", "trainer")  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in SOURCES:  # the build writes beside its sources
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / "source" / name)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    result = subprocess.run([*build, str(folder / "source")], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return next(folder.glob("*.whl"))


def test_it_holds_every_yaml_file_and_module(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    files = [path for name in SOURCES[6:] for path in (ROOT / name).rglob("*") if path.suffix in (".yaml", ".py")]
    wanted = {f"trireme/{path.relative_to(ROOT).as_posix()}" for path in files if "__pycache__" not in path.parts}
    assert wanted <= held
    assert not [name for name in held if name.startswith(("trireme/tests", "tests/"))]


def test_it_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    """The environment uses the libraries installed here, and trireme from the wheel."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
    own = next((tmp_path / "venv" / "lib").iterdir()) / "site-packages"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(own), str(wheel)]
    subprocess.run(install, check=True)
    (own / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*arguments: str) -> str:
        command = [str(tmp_path / "venv" / "bin" / "python"), "-m", "trireme.launch.cli", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    where = "import trireme; print(trireme.__file__)"
    python = [str(tmp_path / "venv" / "bin" / "python"), "-c", where]
    assert str(own) in subprocess.run(python, capture_output=True, text=True, cwd=tmp_path, env=environment).stdout
    assert "pretrain/persimmon_stdlib" in run("recipes")
    assert "no problems found" in run("check", "pretrain/persimmon_stdlib", "plan=ddp", "--nproc", "2")
    assert "trainer.max_steps" in run("keys", "trainer")
