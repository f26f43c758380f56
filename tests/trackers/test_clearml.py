"""Test with the real ClearML library: the offline session files of a resumed run, and a refused login."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.loopback import serving
from helpers.tracked import same_losses, train_twice
from trireme.errors import UserError
from trireme.trainer.trackers.clearml import ClearML


def test_the_sessions_of_a_resumed_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLEARML_CACHE_DIR", str(tmp_path / "cache"))
    run_dir = tmp_path / "runs" / "oars"
    train_twice(run_dir, "clearml", "callbacks.clearml.mode=offline")
    sessions = sorted({each.parent for each in tmp_path.rglob("task.json")}, key=lambda each: each.stat().st_mtime)
    assert len(sessions) == 2
    events = []
    for session in sessions:
        for file in session.rglob("*.jsonl"):
            for line in file.read_text().splitlines():
                found = json.loads(line)
                events += found if isinstance(found, list) else [found]
    scalars = [each for each in events if each.get("type") == "training_stats_scalar"]
    losses = [each for each in scalars if each["metric"] == "loss"]
    same_losses(((f"{each['variant']}/loss", each["iter"], each["value"]) for each in losses), run_dir)
    assert ("cpu_percent", "system") in {(each["metric"], each["variant"]) for each in scalars}
    task = json.loads((sessions[-1] / "task.json").read_text())
    assert (task["name"], task["project_name"], task["tags"]) == ("oars", "sea", ["long"])
    given = task["hyperparams"]
    assert given["recipe"]["trainer/global_batch_size"]["value"] == "8" and given["run"]["group"]["value"] == "study"
    assert {each["key"] for each in task["execution"]["artifacts"]} >= {"samples.txt", "step_00000006"}


def test_a_login_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(method: str, path: str, body: bytes, headers: object) -> tuple[int, object]:
        meta = {"result_code": 401, "result_subcode": 20, "result_msg": "Unauthorized (invalid credentials)"}
        return 401, {"meta": meta, "data": {}}

    with serving(answer) as url:
        for part in ("API", "WEB", "FILES"):
            monkeypatch.setenv(f"CLEARML_{part}_HOST", url)
        monkeypatch.setenv("CLEARML_API_ACCESS_KEY", "ACCESS")
        monkeypatch.setenv("CLEARML_API_SECRET_KEY", "SECRET")
        with pytest.raises(UserError, match=r"ClearML: the credentials are refused"):
            ClearML()
