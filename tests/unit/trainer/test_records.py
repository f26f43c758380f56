"""Tests of collecting predictions from all ranks, in the order of the data set and in constant memory, and of writing
them to files.
"""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import run_ranks
from helpers.recipes import tiny_recipe
from trireme.errors import ComponentFailed, Problem, UserError
from trireme.parallel.mesh import Mesh, build_mesh
from trireme.trainer.collective import on_main
from trireme.trainer.prediction_files import check_out, write_rows
from trireme.trainer.records import AT_ONCE, Records


def _mesh() -> Mesh:
    return build_mesh(tiny_recipe(Path("unused")).plan)


def _collected(mesh: Mesh, samples: int, size: int = 4) -> Records:
    """Records of a set as an evaluation gives them: the last micro-batches are filled up."""
    records = Records(mesh)
    rounds = -(-samples // (size * mesh.data_size))
    for number in range(rounds):
        if number and number % AT_ONCE == 0:
            records.gather()
        first = (number * mesh.data_size + mesh.data_rank) * size
        places = torch.tensor([place if place < samples else -1 for place in range(first, first + size)])
        records.add(places, {"value": places.double() / 3, "text": [f"text {place}" for place in places.tolist()]})
    records.gather()
    return records


def _on_ranks(samples: int) -> list[dict[str, Any]]:
    recipe = tiny_recipe(Path("unused"), "plan=ddp", "trainer.micro_batch_size=2")
    mesh = build_mesh(recipe.plan)
    found = list(_collected(mesh, samples))
    mesh.close()
    return found


def test_records_have_the_order_of_the_set_without_duplicates() -> None:
    alone = list(_collected(_mesh(), 1003))
    assert [record["index"] for record in alone] == list(range(1003))
    assert alone[7]["text"] == "text 7" and alone[7]["value"] == pytest.approx(7 / 3)
    assert run_ranks(_on_ranks, 2, 1003) == [alone, []]


def test_memory_does_not_grow_with_the_set() -> None:
    peaks = []
    for samples in (1_000, 100_000):
        tracemalloc.start()
        records = _collected(_mesh(), samples, size=64)
        assert sum(1 for _ in records) == samples
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        records.close()
    assert peaks[1] - peaks[0] < 8 * 2**20  # what stays in memory before a file takes over, and its last part


def test_files_of_both_kinds_hold_the_rows(tmp_path: Path) -> None:
    from pyarrow import parquet

    rows = [{"index": n, "label": None if n < 1500 else "b", "p": {"a": n / 7, "b": 1.0}} for n in range(2000)]
    write_rows(str(tmp_path / "new" / "rows.jsonl"), lambda: iter(rows))
    assert [json.loads(line) for line in (tmp_path / "new" / "rows.jsonl").read_text().splitlines()] == rows
    write_rows(str(tmp_path / "rows.parquet"), lambda: iter(rows))
    assert parquet.read_table(tmp_path / "rows.parquet").to_pylist() == rows
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "rows.parquet"]


@pytest.mark.parametrize("out", ["rows.txt", "rows", "/proc/rows.jsonl"])
def test_files_that_cannot_be_written(out: str) -> None:
    with pytest.raises(UserError, match="--out"):
        check_out(out)


def test_files_of_other_rows_are_not_replaced(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    for name, rows in (
        ("mine", [{"text": "a", "index": 0}]),
        ("numbered", [{"index": 7, "text": "a"}]),
        ("predictions", [{"index": 0, "text": "a"}]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    (tmp_path / "torn.jsonl").write_text("{no")
    (tmp_path / "empty.jsonl").write_text("")
    for name in ("predictions.jsonl", "predictions.parquet", "empty.jsonl", "new.jsonl"):
        check_out(str(tmp_path / name))
    for name in ("mine.jsonl", "mine.parquet", "numbered.jsonl", "numbered.parquet", "torn.jsonl"):
        with pytest.raises(UserError, match="does not hold predictions"):
            check_out(str(tmp_path / name))


def _failure_on_all(kind: type[Exception]) -> str:
    mesh = build_mesh(tiny_recipe(Path("unused"), "plan=ddp", "trainer.micro_batch_size=2").plan)

    def fails() -> None:
        raise kind(Problem("task", "mine.Own raises KeyError in record_metrics"))

    with pytest.raises(kind) as caught:
        on_main(mesh, fails)
    mesh.close()
    return str(caught.value)


@pytest.mark.parametrize("kind", [UserError, ComponentFailed])
def test_a_failure_on_rank_0_is_raised_on_all_ranks(kind: type[Exception]) -> None:
    one, other = run_ranks(_failure_on_all, 2, kind, timeout=40)
    assert one == other and "raises KeyError in record_metrics" in one
