"""Tests of the files that hold a data set's tokens: reading any range, cutting the tokens into samples, and pickling a
data set as the path of its file.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from trireme.trainer.data.token_files import Column, DocumentBlocks, PackedBlocks, write_column


def written(path: Path, lengths: list[int], batch: int = 10, dtype: str = "uint16") -> tuple[Column, np.ndarray]:
    values = np.arange(sum(lengths), dtype=dtype)
    parts = np.split(values, np.cumsum(lengths)[:-1])
    assert write_column(str(path), parts, np.dtype(dtype), batch) == len(values)
    return Column(str(path)), values


@pytest.mark.parametrize("lengths", [[1], [10], [3, 0, 4], [25, 1, 10, 7], [10, 10], [43]])
def test_every_cut_equals_the_array(tmp_path: Path, lengths: list[int]) -> None:
    column, values = written(tmp_path / "x.arrow", lengths)
    assert len(column) == len(values)
    for start in range(len(values)):
        for stop in range(start, len(values) + 3):
            np.testing.assert_array_equal(column.cut(start, stop), values[start:stop])


def test_a_cut_inside_a_record_batch_copies_nothing(tmp_path: Path) -> None:
    column, _ = written(tmp_path / "x.arrow", [30])
    assert np.shares_memory(column.cut(12, 19), column.parts[1]) and not column.cut(12, 19).flags.writeable
    assert column.cut(8, 12).tolist() == [8, 9, 10, 11]


def test_an_empty_column(tmp_path: Path) -> None:
    write_column(str(tmp_path / "x.arrow"), [], np.uint16)
    assert len(Column(str(tmp_path / "x.arrow"))) == 0
    assert len(PackedBlocks(Column(str(tmp_path / "x.arrow")), 4)) == 0


def test_packed_blocks_lose_only_the_remainder(tmp_path: Path) -> None:
    column, values = written(tmp_path / "x.arrow", [43])
    blocks = PackedBlocks(column, 4)
    assert len(blocks) == 10
    got = blocks.__getitems__(range(10))
    np.testing.assert_array_equal(np.concatenate([sample["input_ids"] for sample in got]), values[:40])
    assert [sample["index"] for sample in got] == list(range(10))
    with pytest.raises(IndexError):
        blocks[10]


def test_documents_are_cut_off(tmp_path: Path) -> None:
    column, _ = written(tmp_path / "x.arrow", [3, 1, 12, 2])
    write_column(str(tmp_path / "ends.arrow"), [np.array([3, 4]), np.array([16, 18])], np.int64)
    blocks = DocumentBlocks(column, Column(str(tmp_path / "ends.arrow")), 5)
    assert [blocks[i]["input_ids"].tolist() for i in range(len(blocks))] == [[0, 1, 2], [3], [4, 5, 6, 7, 8], [16, 17]]


def test_a_data_set_travels_to_another_process_as_its_path(tmp_path: Path) -> None:
    column, _ = written(tmp_path / "x.arrow", [100_000], batch=1 << 16, dtype="int32")
    data = pickle.dumps(PackedBlocks(column, 8))
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data)[9]["input_ids"], column.cut(72, 80))
