"""``trireme jobs`` prints a table of a sweep's runs, and the result of a notebook run tells whether it diverged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.command import trireme_here
from trireme.launch.notebook import Run
from trireme.launch.slurm.job_record import FILE


def run_folder(folder: Path, *lines: dict[str, object], recipe: str = "trainer: {max_steps: 4}\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text(recipe)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_a_sweep_is_shown_while_its_jobs_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder(tmp_path / "lr=1", {"step": 4, "loss": 3.0}, {"step": 4, "eval_loss": 2.5})
    run_folder(tmp_path / "lr=2", {"step": 2, "loss": 4.0}, {"step": 2, "eval_loss": 2.25})
    run_folder(tmp_path / "lr=3", {"step": 1, "loss": "nan"})
    shown = trireme_here(capsys, "jobs", str(tmp_path)).stdout
    for words in ("2.2500 *", "2/4", "4/4", "nan", "best: lr=2 with eval_loss 2.2500 (min is better)"):
        assert words in shown


def test_runs_of_an_array_that_have_not_begun_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    most = "checkpoint: {metric: eval_accuracy, mode: max}\n"
    runs = [run_folder(tmp_path / str(n), {"step": 1, "eval_accuracy": n / 4}, recipe=most) for n in (1, 3)]
    record = {"job": "7", "log": "x", "runs": [*map(str, runs), str(tmp_path / "later")]}
    (tmp_path / FILE).write_text(json.dumps(record))
    shown = trireme_here(capsys, "jobs", str(tmp_path)).stdout
    assert "no line yet" in shown and "best: 3 with eval_accuracy 0.7500 (max is better)" in shown


def test_a_folder_without_runs_is_no_sweep(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = trireme_here(capsys, "jobs", str(tmp_path))
    assert refused.returncode == 2 and "SWEEP" in refused.stderr and "holds no run folders" in refused.stderr


@pytest.mark.parametrize(
    ("lines", "diverged"),
    [
        ([{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": 2.0}], False),
        ([{"step": 1, "loss": "nan"}, {"step": 2, "loss": 3.0}], False),
        ([{"step": 1, "loss": 3.0}, {"step": 2, "loss": "inf"}], True),
        ([{"step": 1, "loss": 3.0}, {"step": 1, "eval_loss": "nan"}], True),
        ([], False),
    ],
)
def test_a_run_of_a_notebook_says_whether_it_diverged(lines: list, diverged: bool, tmp_path: Path) -> None:
    assert Run(run_folder(tmp_path / "run", *lines)).diverged is diverged
