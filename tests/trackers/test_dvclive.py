"""Test with the real DVCLive library: metrics, parameters, loss plot and checkpoints of a resumed run, and options that
are refused outside a repository.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.tracked import same_losses, train_twice
from trireme.errors import UserError
from trireme.trainer.trackers.dvclive import DvcLive


def test_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dvclive import Live
    from dvclive.utils import parse_metrics

    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q"], check=True)
    author = ["-c", "user.name=Cox", "-c", "user.email=cox@example.org"]
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "begin"], check=True)
    run_dir = tmp_path / "runs" / "oars"
    train_twice(run_dir, "dvclive", artifacts="[checkpoints,curve]")
    folder = run_dir / "dvclive"
    live = Live(dir=str(folder), resume=True, save_dvc_exp=False, dvcyaml=None)
    history, latest = parse_metrics(live)
    losses = [
        (tag, int(row["step"]), float(row[column]))
        for tag, column in (("train/loss", "loss"), ("eval/loss", "loss"))
        for name, rows in history.items()
        if Path(name).with_suffix("").parts[-2:] == tuple(tag.split("/"))
        for row in rows
    ]
    same_losses(losses, run_dir)
    assert latest["step"] == 6 and latest["train"]["loss"] > 0 and latest["status"] == "finished"
    parameters = yaml.safe_load((folder / "params.yaml").read_text())
    assert parameters["recipe"]["trainer"]["global_batch_size"] == 8
    assert parameters["run"] == {"group": "study", "trial": -1, "tags": ["long"]}
    assert (folder / "plots" / "images" / "curve.png").read_bytes()[:4] == b"\x89PNG"
    assert (folder / "artifacts" / "step_00000006" / "manifest.json").is_file()
    assert (folder / "artifacts" / "step_00000006.dvc").is_file()
    assert "step_00000006" in yaml.safe_load((folder / "dvc.yaml").read_text())["artifacts"]


@pytest.mark.parametrize("options", [{"artifacts": ["checkpoints"]}, {"experiment": True}])
def test_options_that_need_a_repository_are_refused_outside_of_one(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"is not inside one"):
        DvcLive(**options)
    DvcLive(artifacts=["curve"])
