"""Test with the real Comet library: the offline archives of a resumed run, and a refused API key."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from helpers.loopback import serving
from helpers.tracked import same_losses, train_twice
from trireme.errors import UserError
from trireme.trainer.trackers.comet import Comet


def test_archives_of_a_resumed_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "oars"
    key = train_twice(run_dir, "comet", "callbacks.comet.mode=offline")
    archives = sorted((run_dir / "comet").glob("*.zip"))
    assert len(archives) == 2 and all(archive.name.startswith(key) for archive in archives)
    messages, assets = [], []
    for archive in archives:
        with zipfile.ZipFile(archive) as content:
            about = json.loads(content.read("experiment.json"))
            assert (about["project_name"], about["tags"]) == ("sea", ["long"])
            found = [json.loads(line) for line in content.read("messages.json").splitlines()]
            messages += found
            assets += [each["payload"]["additional_params"] for each in found if each["type"] == "file_upload"]
    metrics = [each["payload"]["metric"] for each in messages if each["type"] == "metric_msg"]
    losses = [each for each in metrics if each["metricName"] in ("train/loss", "eval/loss")]
    same_losses(((each["metricName"], each["step"], each["metricValue"]) for each in losses), run_dir)
    assert "system/cpu_percent" in {each["metricName"] for each in metrics}
    parameters = {p["paramName"]: p["paramValue"] for p in (m["payload"].get("param", {}) for m in messages) if p}
    assert parameters["trainer.global_batch_size"] == 8
    others = {each["payload"]["key"]: each["payload"]["value"] for each in messages if each["type"] == "log_other"}
    assert (others["Name"], others["group"], others["status"]) == ("oars", "study", "finished")
    names = {each.get("fileName") for each in assets}
    assert {"samples.txt", "log.txt"} <= names and "curve" in {each.get("figName") for each in assets}
    assert any(name and name.startswith("step_00000006/") for name in names)


def test_a_key_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COMET_API_KEY", raising=False)
    with pytest.raises(UserError, match="Comet: there is no key"):
        Comet()
    answers = []

    def answer(method: str, path: str, body: bytes, headers: object) -> tuple[int, object]:
        answers.append(path)
        return 401, {"msg": "invalid API key", "code": 401}

    with serving(answer) as url:
        monkeypatch.setenv("COMET_URL_OVERRIDE", f"{url}/clientlib/")
        monkeypatch.setenv("COMET_API_KEY", "k" * 24)
        with pytest.raises(UserError, match=r"Comet: the key is refused\n  fix: comet login, or set COMET_API_KEY"):
            Comet()
    assert answers
