"""Tests of the check that a data source has the columns which the task needs, before any data is prepared."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import trireme
import yaml
from datasets import Dataset
from trireme.trainer.component import locate
from trireme.trainer.data.check_data import check_data
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.row_files import RowFiles
from trireme.trainer.data.wanted_columns import wanted_columns

TASKS = sorted((Path(trireme.__file__).parent / "configs" / "task").glob("*.yaml"))
ROW = {"body": "good", "stars": 4}
ROWS = {"_target_": "trireme.trainer.data.row_files.RowFiles"}


@pytest.mark.parametrize("file", TASKS, ids=lambda file: file.stem)
def test_wanted_columns_are_those_of_the_samples(file: Path) -> None:
    task = yaml.safe_load(file.read_text())
    samples = locate(task["_target_"]).samples
    assert wanted_columns(task) == (locate(samples).columns if samples else None)


def test_a_missing_task_needs_no_columns() -> None:
    assert wanted_columns(None) is None and wanted_columns({"_target_": "nowhere.Task"}) is None


def _file(folder: Path, suffix: str) -> Path:
    path = folder / f"rows.{suffix}"
    text = {"csv": "body,stars\ngood,4\n", "tsv": "body\tstars\ngood\t4\n", "json": json.dumps([ROW], indent=1)}
    if suffix == "parquet":
        Dataset.from_list([ROW]).to_parquet(str(path))
    elif suffix == "arrow":
        Dataset.from_list([ROW]).save_to_disk(str(folder / "saved"))
        path = next((folder / "saved").glob("*.arrow"))
    elif suffix == "csv.gz":
        path.write_bytes(gzip.compress(text["csv"].encode()))
    else:
        path.write_text(text.get(suffix, json.dumps(ROW) + "\n"))
    return path


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "json", "jsonl", "parquet", "arrow"])
def test_a_table_tells_its_columns(tmp_path: Path, suffix: str) -> None:
    assert RowFiles([str(_file(tmp_path, suffix))]).column_names() == ["body", "stars"]


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"text": "body", "label": "stars"}, ""),
        ({"text": "body"}, "data.source: gives no column label, which the task needs as label; there: body, stars"),
        ({"text": "body", "label": "stars", "text_pair": "x"}, "gives no column x, which the task needs as text_pair"),
        ({"txt": "body", "label": "stars"}, "data.columns.txt: is not a column that the task uses; it uses text,"),
    ],
)
def test_check_compares_the_columns(tmp_path: Path, columns: dict[str, str], problem: str) -> None:
    config = DataConfig({**ROWS, "paths": [str(_file(tmp_path, "csv"))]}, columns=columns)
    task = {"_target_": "trireme.trainer.tasks.sequence_classification.SequenceClassification"}
    found = check_data(config, rows=True, wanted=wanted_columns(task))
    text = " ".join(f"{one.field}: {one.why}" for one in found).replace("columns there", "there")
    assert problem in text if problem else not found


def test_further_sets_are_compared_too(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("text,label\ngood,4\n")
    config = DataConfig(
        {**ROWS, "paths": [str(_file(tmp_path, "csv"))]},
        columns={"text": "body", "label": "stars"},
        eval_sets={"other": {**ROWS, "paths": [str(other)]}},
    )
    (first, second) = check_data(config, rows=True, wanted={"text": True, "label": True})
    assert {first.field, second.field} == {"data.eval_sets.other"} and "gives no column body" in first.why
