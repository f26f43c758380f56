"""Tests of the notes about a run's output folder: it has unknown files, holds a run already, or lies inside another
run's folder. ``--fresh`` moves only a folder that holds a run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.command import trireme_here
from helpers.recipes import TINY, tiny_recipe, with_few_files
from trireme.errors import UserError
from trireme.trainer.build import train
from trireme.trainer.run_folder import OF_A_RUN, folder_notes, open_run_folder, run_notes


def test_unknown_files_are_reported_and_never_moved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("thesis.tex", "b", "c", "d"):
        (tmp_path / name).touch()
    assert "holds files that belong to no run (b, c, d and 1 more)" in folder_notes(tmp_path)[0]
    open_run_folder(tmp_path, fresh=False)
    with pytest.raises(UserError, match="holds no run, and --fresh would move"):
        open_run_folder(tmp_path, fresh=True)
    assert (tmp_path / "thesis.tex").exists()
    checked = trireme_here(capsys, "check", str(TINY), f"run.dir={tmp_path}")
    assert checked.returncode == 0 and "note   run.dir=" in checked.stdout


@pytest.mark.parametrize("name", OF_A_RUN)
def test_files_of_a_run_are_no_unknown_files(name: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / name).touch()
    (run / "notes.md").touch()
    assert folder_notes(run) == []
    open_run_folder(run, fresh=True)
    assert (tmp_path / "run.1" / "notes.md").exists()


def test_a_check_reports_the_run_that_is_in_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = (*with_few_files([]), "trainer.max_steps=1")
    train(tiny_recipe(tmp_path / "run", *few))
    same = trireme_here(capsys, "check", str(TINY), f"run.dir={tmp_path / 'run'}", *few)
    assert same.returncode == 0 and "holds this run, which continues after step_00000001" in same.stdout
    assert run_notes(tiny_recipe(tmp_path / "run" / "checkpoints", *few)) == []
    other = trireme_here(capsys, "check", str(TINY), f"run.dir={tmp_path / 'run'}", *few, "optimizer.lr=0.5")
    assert "its folder is taken" in other.stdout and "no problems found" not in other.stdout
    for inside in ("checkpoints", "checkpoints/step_00000001"):
        report = trireme_here(capsys, "report", str(tmp_path / "run" / inside))
        assert report.returncode == 2 and f"name the run: trireme report {tmp_path / 'run'}" in report.stderr
    [note] = run_notes(tiny_recipe(tmp_path / "run", *few, "optimizer.lr=0.5"))
    assert "of another recipe (changed: optimizer.lr)" in note


def test_lists_of_settings_are_compared_by_their_values(tmp_path: Path) -> None:
    """A run with rules for parameters was always one of another recipe, since its rules were compared as objects."""
    few = (*with_few_files([]), "trainer.max_steps=1")
    rules = "+parameter_groups.rules=[{names: ['*.bias'], lr: RATE}, {names: ['*.0.*'], weight_decay: 0.5}]"
    train(tiny_recipe(tmp_path, *few, rules.replace("RATE", "0.02")))
    [note] = run_notes(tiny_recipe(tmp_path, *few, rules.replace("RATE", "0.02")))
    assert "another recipe" not in note
    [note] = run_notes(tiny_recipe(tmp_path, *few, rules.replace("RATE", "0.03")))
    assert "of another recipe (changed: parameter_groups.rules)" in note


def test_a_run_folder_inside_another_one_is_reported(tmp_path: Path) -> None:
    assert folder_notes(tmp_path / "sweep" / "job") == []
    for name in ("recipe.yaml", "log.txt"):
        (tmp_path / name).touch()
    assert f"lies in the folder of another run ({tmp_path})" in folder_notes(tmp_path / "deep" / "inner")[0]
    assert folder_notes(tmp_path) == []
