"""Tests of how the name of a model or tokenizer is resolved: to a local folder, or as a hub id to files that are
downloaded once and later found without the hub. Any other name gives one error that names the recipe key.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.hub import hub
from trireme.errors import UserError
from trireme.models.check_model import check_model
from trireme.models.hub import local_path
from trireme.models.model_config import ModelConfig

ASK = """
import json, sys
from trireme.errors import UserError
from trireme.models.hub import local_path
answers = []
for name, revision, field, weights in json.loads(sys.argv[1]):
    try:
        answers.append(sorted(file.name for file in local_path(name, revision, field, weights).iterdir()))
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def _ask(endpoint: str, home: Path, *questions: tuple[str, str | None, str, bool]) -> list:
    """What ``local_path`` answers in a process of its own, whose hub is at ``endpoint``."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(questions)], env=environment, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_hub_id_is_fetched_once_and_found_without_the_hub(tmp_path: Path) -> None:
    files = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "README.md": b"words",
        "model.safetensors": b"weights",
        "consolidated.safetensors": b"the same again",
        "original/model.safetensors": b"and again",
    }
    model = "model.weights"
    with hub() as server:
        server.files |= {"owner/model": dict(files), "owner/bin": {"config.json": b"{}", "pytorch_model.bin": b"w"}}
        answers = _ask(
            server.endpoint,
            tmp_path,
            ("owner/model", None, model, False),
            ("owner/model", None, model, True),
            ("owner/bin", None, model, True),
            ("owner/nothing", None, model, False),
        )
        assert answers[:3] == [
            ["config.json", "tokenizer.json"],
            ["config.json", "model.safetensors", "tokenizer.json"],
            ["config.json", "pytorch_model.bin"],
        ]
        assert answers[3].startswith("model.weights = 'owner/nothing'") and "no public model of this name" in answers[3]
        assert "consolidated.safetensors" not in server.fetched
        endpoint = server.endpoint
    start = time.monotonic()
    again, unknown, tokenizer = _ask(
        endpoint,
        tmp_path,
        ("owner/model", None, model, True),
        ("owner/other", None, model, False),
        ("gpt2", None, "data.tokenizer.path", False),
    )
    assert again == answers[1]
    assert "there is no folder of this name here, and as a hub id it cannot be fetched (ConnectError" in unknown
    assert tokenizer.startswith("data.tokenizer.path = 'gpt2'") and "cannot be fetched" in tokenizer
    assert len(unknown.splitlines()) == 3
    assert time.monotonic() - start < 30  # no time is spent on retries


@pytest.mark.parametrize("name", ["weights", "./weights", "/nowhere/weights", "a/b/c", "~/not here", "../x/y", ""])
def test_what_can_be_no_hub_id_is_refused_at_once(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.weights.*\n.*no folder or file of this name"):
        local_path(name)


def test_a_mistyped_folder_names_the_nearest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "w" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for name in ("w/lama", str(tmp_path / "w" / "lama")):
        (problem,) = check_model(ModelConfig("llama", weights=name), 16)
        assert problem.field == "model.weights" and "did you mean" in problem.fix and "w/llama?" in problem.fix
        with pytest.raises(ValueError, match=r"weights=.*no folder.*; did you mean"):
            ModelConfig(weights=name)


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    for weights in (None, str(tmp_path)):
        with pytest.raises(ValueError, match="revision='main' has no effect"):
            ModelConfig("llama", weights=weights, revision="main")
