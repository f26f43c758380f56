"""Test with the real DVCLive library: metrics, parameters, loss plot and checkpoints of a resumed run."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from helpers.tracked import same_losses, train_twice


def test_a_resumed_run(tmp_path: Path) -> None:
    from dvclive import Live
    from dvclive.utils import parse_metrics

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
    assert any(folder.rglob("step_00000006")), json.dumps([str(path) for path in folder.rglob("*")][:50])
