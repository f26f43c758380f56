"""Tests of data sets of the Hugging Face Hub: rows, splits and labels, read from a local server, the cache or saved
folders.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from helpers.command import refused, trireme_here
from helpers.hub import hub
from trireme.errors import UserError
from trireme.trainer.data.hub_source import Hub
from trireme.trainer.data.row_source import RowSource

ASK = """
import json, sys, tempfile
from trireme.errors import UserError
from trireme.trainer.data.hub_source import Hub
from trireme.trainer.data.row_source import RowSource
answers = []
for question in json.loads(sys.argv[1]):
    source = RowSource({"_target_": "trireme.trainer.data.sources.Hub", **question})
    try:
        fingerprint = source.fingerprint()
        rows = source.rows_of(tempfile.mkdtemp(), {"text": True, "label": True}, {"text": "body", "label": "stars"})
        answers.append([fingerprint, rows.to_list()])
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""
NAMES = ["bad", "good"]


def _ask(endpoint: str, home: Path, *questions: dict[str, Any], **variables: str) -> tuple[list[Any], float]:
    """Rows or error messages from a separate process whose hub is at ``endpoint``, and the seconds that it took."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", **variables}
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ASK, json.dumps(questions)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), time.monotonic() - begun


def _rows(first: int, count: int) -> list[dict[str, Any]]:
    return [{"body": f"text {number}", "stars": number % 2, "extra": number} for number in range(first, first + count)]


def _lines(first: int, count: int) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in _rows(first, count)).encode()


README = b"""---
configs:
- config_name: small
  data_files: [{split: train, path: small/train.jsonl}, {split: validation, path: small/validation.jsonl}]
- config_name: large
  data_files: [{split: train, path: large/train.jsonl}]
---
"""


def test_columns_configurations_and_splits_of_the_hub(tmp_path: Path) -> None:
    with hub() as server:
        server.datasets["owner/reviews"] = {
            "README.md": README,
            "small/train.jsonl": _lines(0, 10),
            "small/validation.jsonl": _lines(10, 3),
            "large/train.jsonl": _lines(0, 20),
        }
        answers, _ = _ask(
            server.endpoint,
            tmp_path,
            {"path": "owner/reviews", "name": "small"},
            {"path": "owner/reviews", "name": "small", "split": "validation"},
            {"path": "owner/reviews", "name": "large", "split": "train[:25%]"},
            {"path": "owner/reviews"},
            {"path": "owner/reviews", "name": "small", "split": "test"},
            {"path": "owner/nothing"},
        )
        endpoint = server.endpoint
    spans = ((0, 10), (10, 3), (0, 5))
    expected = [[{"text": row["body"], "label": row["stars"]} for row in _rows(*span)] for span in spans]
    assert [rows for _, rows in answers[:3]] == expected
    assert len({fingerprint for fingerprint, _ in answers[:3]}) == 3
    assert "small" in answers[3] and "large" in answers[3] and "Config name is missing" in answers[3]
    assert "validation" in answers[4] and answers[5].startswith("data.source.path = 'owner/nothing'")
    assert all(len(message.splitlines()) == 3 for message in answers[3:])
    # the server has gone: what was fetched serves, and everything else is refused at once
    small, other = {"path": "owner/reviews", "name": "small"}, {"path": "owner/other"}
    (again, refused), _ = _ask(endpoint, tmp_path, small, other)
    assert again[1] == expected[0] and "the hub does not answer, nothing is cached" in refused
    (offline,), seconds = _ask(endpoint, tmp_path, other, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set, nothing is cached" in offline and seconds < 60


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    features = Features({"body": Value("string"), "stars": ClassLabel(names=NAMES), "extra": Value("int64")})
    parts = {"train": _rows(0, 10), "validation": _rows(10, 4)}
    DatasetDict({name: Dataset.from_list(rows, features=features) for name, rows in parts.items()}).save_to_disk(
        str(tmp_path / "parts")
    )
    Dataset.from_list(_rows(0, 6), features=features).save_to_disk(str(tmp_path / "one"))
    return tmp_path


def _of(folder: Path, **options: Any) -> list[dict[str, Any]]:
    source = RowSource({"_target_": "trireme.trainer.data.sources.Hub", "path": str(folder), **options})
    source.check(streaming=False)
    data = source.rows_of(
        str(folder.parent / "scratch"), {"text": True, "label": True}, {"text": "body", "label": "stars"}
    )
    assert data.features["label"].names == NAMES
    return data.to_list()


def test_data_sets_saved_to_disk_are_read(saved: Path) -> None:
    assert _of(saved / "one") == [{"text": row["body"], "label": row["stars"]} for row in _rows(0, 6)]
    for split, numbers in {
        "validation": [10, 11, 12, 13],
        "train[:30%]": [0, 1, 2],
        "train[-2:]+validation[:1]": [8, 9, 10],
    }.items():
        assert [row["text"] for row in _of(saved / "parts", split=split)] == [f"text {number}" for number in numbers]
    with pytest.raises(UserError, match=r"data\.source\.path.*\n.*test.*train"):
        _of(saved / "parts", split="test")


def test_documents_of_a_saved_folder_are_loaded_and_streamed(saved: Path) -> None:
    source = Hub(str(saved / "parts"), text_column="body", split="validation")
    texts = [f"text {number}" for number in range(10, 14)]
    assert source.load("unused")["text"][:] == texts == [row["text"] for row in source.stream()]
    first = source.fingerprint()
    assert Hub(str(saved / "parts"), text_column="body", split="train").fingerprint() != first


def test_a_label_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """Data sets of the hub may have the label -1 in test sets; a class below zero would crash a GPU."""
    from trireme.trainer.data.samples import label_number

    for value in (-1, 2):
        with pytest.raises(ValueError, match=rf"its label {value} is none of the 2 labels"):
            label_number(value, ("bad", "good"), is_number=True)
    assert label_number(1, ("bad", "good"), is_number=True) == 1


RECIPE = """
defaults:
  - /base
  - /model: bert_tiny
  - /data: hub_rows
  - override /task: sequence_classification
  - _self_
data:
  source: {path: parts, split: "train[:80%]"}
  eval_source: {_target_: trireme.trainer.data.sources.Hub, path: parts, split: validation}
  test_source: {_target_: trireme.trainer.data.sources.Hub, path: parts, split: "train[80%:]"}
  columns: {text: body, label: stars}
  tokenizer: {vocab_size: 300}
  block_size: 16
trainer: {max_steps: 2, global_batch_size: 4, micro_batch_size: 4}
"""


def test_a_recipe_names_splits_by_group(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(saved)
    (saved / "reviews.yaml").write_text(RECIPE)
    result = trireme_here(capsys, "data", "reviews.yaml", "--samples", "1")
    assert result.returncode == 0, result.stderr
    for line in ("train  rows: 8", "held_out  rows: 4", "test  rows: 2"):
        assert line in result.stdout
    assert re.search(r"^  bad +4 +50.0%", result.stdout, re.M)
    stream = ["data.streaming=true", "data.deduplicate=false", "data.tokenizer.sample_documents=9"]
    for command in ("check", "data"):
        refused(trireme_here(capsys, command, "reviews.yaml", *stream), "data.streaming")
    refused(trireme_here(capsys, "data", "reviews.yaml", "data.source.path=./none"), "there is no such folder")
