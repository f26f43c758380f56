"""Tests of rows that lack a value which the task needs: they are left out and counted, and a data set without any
complete row is refused.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from datasets import Dataset, Features, Value
from trireme.errors import UserError
from trireme.trainer.data.complete_rows import complete_rows
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.further_sets import further_rows
from trireme.trainer.data.prepare_rows import prepared_rows

WANTED = {"text": True, "label": True, "text_pair": False}


def test_null_blank_and_nan_are_missing() -> None:
    features = Features({"text": Value("string"), "label": Value("float32"), "text_pair": Value("string")})
    rows = [("a", 1.0, "x"), (None, 2.0, "x"), (" \n", 3.0, "x"), ("b", float("nan"), "x"), ("c", None, "x")]
    rows.append(("d", 4.0, None))  # text_pair is no column that every row must have
    columns = dict(zip(features, map(list, zip(*rows, strict=True)), strict=True))
    data, line = complete_rows(Dataset.from_dict(columns, features=features), ["text", "label"])
    assert data["text"][:] == ["a", "d"]
    assert line == ("left out 4 of 6 rows: 2 without text (the first is row 2), 2 without label (the first is row 4)")
    assert complete_rows(data, ["text", "label"]) == (data, "")


def _rows(path: Path, *rows: dict) -> dict:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": [str(path)]}


def test_left_out_rows_are_reported_at_every_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = [{"text": f"text {number}", "label": str(number % 2)} for number in range(20)]
    source = _rows(tmp_path / "rows.jsonl", *whole, {"text": "no label", "label": None}, {"text": "", "label": "1"})
    config = DataConfig(source, held_out=0.2, cache_dir=str(tmp_path / "cache"), eval_sets={"other": dict(source)})
    for _ in range(2):
        rows = prepared_rows(config, WANTED)
        assert len(rows.train) + len(rows.held_out) == 20 and None not in rows.train["label"][:]
        assert rows.stats.left_out() == (
            "data.source: left out 2 of 22 rows: 1 without text (the first is row 22), "
            "1 without label (the first is row 21)"
        )
    caplog.set_level(logging.INFO, "trireme.data")
    assert len(further_rows(config, "other", WANTED)) == 20
    assert "left out 2 of 22 rows" in caplog.text


def test_a_data_set_without_a_complete_row_is_refused(tmp_path: Path) -> None:
    source = _rows(tmp_path / "rows.jsonl", {"text": "", "label": "1"}, {"text": "  ", "label": "0"})
    with pytest.raises(UserError, match=r"left out 2 of 2 rows: 2 without text.*\n.*data\.columns"):
        prepared_rows(DataConfig(source, cache_dir=str(tmp_path / "cache")), WANTED)
