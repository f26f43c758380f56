"""Test the Neptune tracker with the real Neptune library: the offline queue of a run that was stopped and resumed, and
the errors for a missing workspace and for a missing or wrong API token.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.tracked import same_losses, train_twice
from trireme.errors import UserError
from trireme.trainer.trackers.neptune import Neptune


def operations(folder: Path) -> list[dict[str, Any]]:
    """The operations in Neptune's offline queue, read by Neptune's own reader."""
    from neptune.core.components.queue.json_file_splitter import JsonFileSplitter
    from neptune.internal.operation import Operation

    found = []
    for file in sorted(folder.glob("data-*.log")):
        splitter = JsonFileSplitter(str(file))
        while (item := splitter.get()) is not None:
            found.append(item.get("obj", item))
        splitter.close()
    assert all(Operation.from_dict(each) for each in found)
    return found


def test_the_queue_of_a_resumed_run(tmp_path: Path) -> None:
    run_dir = tmp_path / "runs" / "oars"
    known = train_twice(run_dir, "neptune", "callbacks.neptune.mode=offline")
    folders = sorted(Path(".neptune/offline").glob("run__*"), key=lambda each: each.stat().st_mtime)
    assert len(folders) == 2
    about = [json.loads((folder / "metadata.json").read_text()) for folder in folders]
    assert all(each["mode"] == "offline" for each in about)
    both = [operation for folder in folders for operation in operations(folder)]
    losses = [
        ("/".join(each["path"]), int(entry["step"]), entry["value"])
        for each in both
        if each["type"] == "LogFloats" and each["path"] in (["train", "loss"], ["eval", "loss"])
        for entry in each["values"]
    ]
    same_losses(losses, run_dir)
    assigned = {"/".join(each["path"]): each.get("value") for each in both if each["type"].startswith("Assign")}
    assert assigned["recipe/trainer.global_batch_size"] == 8 or assigned["recipe/trainer/global_batch_size"] == 8
    assert (assigned["run/group"], assigned["status"]) == ("study", "finished")
    assert assigned.get("sys/custom_run_id", known) == known
    kinds = {each["type"] for each in both}
    assert {"UploadFile", "UploadFileSet"} <= kinds or "UploadFile" in kinds


def test_tokens_that_are_missing_or_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="names no workspace; write workspace/name"):
        Neptune()
    monkeypatch.delenv("NEPTUNE_API_TOKEN", raising=False)
    with pytest.raises(UserError, match="Neptune: there is no token"):
        Neptune(project="me/sea")
    monkeypatch.setenv("NEPTUNE_API_TOKEN", "nonsense")
    with pytest.raises(UserError, match="is not a token of Neptune"):
        Neptune(project="me/sea")
