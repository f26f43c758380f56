"""``trireme checkpoints`` lists the checkpoints of a run, and marks those that are damaged or incomplete."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.command import refused, trireme, trireme_here
from helpers.recipes import tiny_recipe
from trireme.trainer.build import train


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_recipe(folder, "checkpoint.every=2", "trainer.max_steps=4", "trainer.eval_every=4"))
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def test_a_sound_run_is_listed(run: Path) -> None:
    shown = trireme("checkpoints", str(run), "--verify")
    assert shown.returncode == 0, shown.stderr
    first, second = [line for line in shown.stdout.splitlines() if "step_" in line]
    assert "step_00000002" in first and "step_00000004" in second
    assert "complete, verified" in first and "single x 1" in first


def test_json_says_what_there_is(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.rename(run / "checkpoints" / "step_00000002", run / "checkpoints" / ".step_00000002.partial")
    shown = trireme_here(capsys, "checkpoints", str(run / "checkpoints"), "--json")
    assert shown.returncode == 0, shown.stderr
    whole, half = json.loads(shown.stdout)
    folder = run / "checkpoints" / "step_00000004"
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert whole["path"] == str(folder) and whole["step"] == 4 and whole["files"] == len(files)
    assert whole["bytes"] == sum(path.stat().st_size for path in files)
    assert whole["complete"] and not whole["verified"] and whole["problems"] == []
    assert (whole["plan"], whole["world_size"]) == ("single", 1) and whole["metric"] > 0
    assert not half["complete"] and half["step"] == 2


def test_damage_is_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = next((run / "checkpoints" / "step_00000004" / "tensors").iterdir())
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    (run / "checkpoints" / "step_00000002" / "state.json").unlink()
    (run / "checkpoints" / "step_00000002" / "recipe.yaml").write_text("")
    shown = trireme_here(capsys, "checkpoints", str(run))  # names and sizes only
    assert shown.returncode == 1
    first, second = [line for line in shown.stdout.splitlines() if "step_" in line]
    assert "state.json is missing" in first and "damaged" not in second
    shown = trireme_here(capsys, "checkpoints", str(run / "checkpoints" / "step_00000004"), "--verify", "--json")
    assert shown.returncode == 1, shown.stderr
    (only,) = json.loads(shown.stdout)
    assert only["problems"] == [f"tensors/{victim.name} is damaged (its digest has changed)"]


def test_a_checkpoint_without_its_manifest_is_damaged(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "checkpoints" / "step_00000004" / "manifest.json").unlink()
    shown = trireme_here(capsys, "checkpoints", str(run))
    assert shown.returncode == 1 and "manifest.json is missing" in shown.stdout


def test_folders_without_checkpoints_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(trireme_here(capsys, "checkpoints", str(tmp_path)), "RUN", "holds no checkpoint")
    refused(trireme_here(capsys, "checkpoints", str(tmp_path / "none")), "is not a folder")
