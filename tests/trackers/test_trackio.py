"""Test with the real Trackio library: its storage holds a resumed run; a server without a token is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.tracked import same_losses, train_twice
from trireme.errors import UserError
from trireme.trainer.trackers.trackio import Trackio


def test_a_resumed_run(tmp_path: Path) -> None:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    run_dir = tmp_path / "runs" / "oars"
    known = train_twice(run_dir, "trackio")
    (run,) = [each for each in trackio.Api().runs("sea") if each.name == known]
    assert run.config["trainer.global_batch_size"] == 8 and run.config["tags"] == "long"
    assert run.config["_Group"] == "study"
    logs = SQLiteStorage.get_logs("sea", known)
    losses = [(tag, line["step"], line[tag]) for line in logs for tag in ("train/loss", "eval/loss") if tag in line]
    same_losses(losses, run_dir)
    assert any("system/cpu_percent" in line for line in logs) and any("curve" in line for line in logs)
    assert logs[-1]["finished"] == 1.0
    kept = {each["name"] for each in SQLiteStorage.get_artifacts("sea")}
    assert kept == {f"{known}-checkpoint", f"{known}-samples", f"{known}-log"}


def test_a_server_without_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRACKIO_WRITE_TOKEN", raising=False)
    with pytest.raises(UserError, match="there is no write token for http://here:7860"):
        Trackio(server="http://here:7860")
