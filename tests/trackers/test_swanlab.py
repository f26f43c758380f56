"""Test with the real SwanLab library: local files of a resumed run, an offline run, and a missing API key."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml
from helpers.tracked import about, same_losses, train_twice
from trireme.errors import UserError
from trireme.trainer.trackers.line import line_of
from trireme.trainer.trackers.swanlab import SwanLab


def test_local_files_of_a_resumed_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "oars"
    known = train_twice(run_dir, "swanlab", "callbacks.swanlab.mode=local", artifacts="[curve,samples]")
    parts = sorted((run_dir / "swanlog").glob("run-*"))
    assert len(parts) == 2
    with closing(sqlite3.connect(run_dir / "swanlog" / "runs.swanlab")) as board:  # which its dashboard reads
        tags = board.execute(
            "select run_id, folder, tag.name from tag join experiment on experiment_id = experiment.id"
        )
        names_of = {(run, folder): name for run, folder, name in tags}
    losses, names = [], set(names_of.values())
    for part in parts:
        config = yaml.safe_load((part / "files" / "config.yaml").read_text())
        assert config["id"]["value"] == known and config["trainer"]["value"]["global_batch_size"] == 8
        for folder in (part / "logs").iterdir():
            name = names_of[part.name, folder.name]
            if name in ("train/loss", "eval/loss"):
                rows = [json.loads(line) for file in folder.glob("*.log") for line in file.read_text().splitlines()]
                losses += [(name, row["index"], row["data"]) for row in rows]
    same_losses(losses, run_dir)
    assert {"system/cpu_percent", "curve", "samples"} <= names


def test_an_offline_run(tmp_path: Path) -> None:
    tracker = SwanLab(mode="offline")
    tracker.start(about(tmp_path))
    tracker.write([line_of(1, 0.0, {"loss": 2.0})])
    tracker.finish("failed", "out of memory")
    assert list(tmp_path.glob("swanlog/run-*/*.swanlab"))


def test_a_missing_key_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWANLAB_API_KEY", raising=False)
    with pytest.raises(
        UserError, match=r"SwanLab: No API key provided.*\n  fix: swanlab login, or set SWANLAB_API_KEY"
    ):
        SwanLab()
