"""Tests of document sources (files, Python sources, and data sets of the Hugging Face Hub): which documents they give,
and that errors name the file and the place of bad input.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trireme.errors import UserError
from trireme.trainer.data import file_text as reading
from trireme.trainer.data.sources import Files, Hub, PythonSources

TEXTS = ["plain", "two\nlines", 'comma, "quote"', "käse 🧀 \u2028 \x85", "x" * 200_000]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise AssertionError("a local source opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write(folder: Path, format: str, texts: list[str] = TEXTS, column: str = "text") -> Path:
    path = folder / f"data.{format}"
    table = pa.table({"id": list(range(len(texts))), column: texts})
    if format == "jsonl":
        path.write_text("".join(json.dumps({"id": 1, column: text}) + "\n" for text in texts))
    elif format == "json":
        path.write_text(json.dumps([{column: text} for text in texts], indent=1, ensure_ascii=False))
    elif format == "csv":
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["id", column], *([i, text] for i, text in enumerate(texts))])
    elif format == "parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    return path


def load(source: Any, tmp_path: Path) -> list[str]:
    return source.load(str(tmp_path / "scratch"))["text"][:]


def problems(source: Any, tmp_path: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(source, tmp_path)
    return str(caught.value)


@pytest.mark.parametrize("format", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_every_format_gives_its_documents(tmp_path: Path, format: str) -> None:
    source = Files([str(write(tmp_path, format))])
    assert load(source, tmp_path) == TEXTS
    assert [row["text"] for row in source.stream()] == TEXTS


def test_the_arrow_file_layout(tmp_path: Path) -> None:
    table = pa.table({"text": TEXTS})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    assert load(Files([str(tmp_path / "a.arrow")]), tmp_path) == TEXTS


@pytest.mark.parametrize("chunk", [1, 3, 1 << 20])
def test_text_splits(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", chunk)  # characters and lines cross the chunks
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffönë\ntwo\r\n\n \n\nthree\x85🧀\n".encode())
    paths = [str(path)]
    assert load(Files(paths), tmp_path) == ["önë\ntwo\r\n\n \n\nthree\x85🧀\n"]
    assert load(Files(paths, split_text="line"), tmp_path) == ["önë", "two", "three\x85🧀"]
    assert load(Files(paths, split_text="paragraph"), tmp_path) == ["önë\ntwo", "three\x85🧀"]


def test_other_encodings(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("grün\nrot\n".encode("utf-16"))
    assert load(Files([str(tmp_path / "a.txt")], encoding="utf-16", split_text="line"), tmp_path) == ["grün", "rot"]
    with pytest.raises(ValueError, match="encoding=utf-9"):
        Files(["x"], encoding="utf-9")


def test_folders_and_patterns(tmp_path: Path) -> None:
    for name in ("in/b/2.md", "in/a/1.txt", "in/.hidden/3.txt", "in/a/.x.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert load(Files([str(tmp_path / "in")]), tmp_path) == ["in/a/1.txt", "in/b/2.md"]
    patterns = [f"{tmp_path}/in/**/*.md", f"{tmp_path}/in/*/*"]  # in the order given, no file twice
    assert load(Files(patterns), tmp_path) == ["in/b/2.md", "in/a/1.txt"]


def test_missing_files_are_all_named(tmp_path: Path) -> None:
    text = problems(Files([f"{tmp_path}/none.txt", f"{tmp_path}/*.parquet"]), tmp_path)
    assert "none.txt" in text and "*.parquet" in text and text.count("fix:") == 2
    assert "no path is given" in problems(Files([]), tmp_path)


@pytest.mark.parametrize("chunk", [4, 1 << 20])
def test_undecodable_bytes_of_all_files_are_named(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", chunk)
    (tmp_path / "a.txt").write_bytes(b"good \xc3\xa9 \xff bad")
    (tmp_path / "b.txt").write_bytes(b"fine")
    (tmp_path / "c.txt").write_bytes(b"cut \xe2\x82")
    text = problems(Files([str(tmp_path / name) for name in ("a.txt", "b.txt", "c.txt")]), tmp_path)
    assert "a.txt\n  byte 8 (0xff)" in text and "c.txt\n  byte 4 (0xe2)" in text and "b.txt" not in text
    assert "data.source.encoding" in text and "iconv" in text


@pytest.mark.parametrize("format", ["jsonl", "json", "csv", "parquet", "arrow"])
def test_a_missing_column_names_those_there(tmp_path: Path, format: str) -> None:
    text = problems(Files([str(write(tmp_path, format, column="texts"))]), tmp_path)
    assert "data.source.text_column = 'text'" in text and "set data.source.text_column=texts" in text


def test_malformed_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n\n{"text": "b"\n')
    assert "line 3, column 13 is not JSON" in problems(Files([f"{tmp_path}/a.jsonl"]), tmp_path)
    (tmp_path / "b.json").write_text('[\n{"text": "a"},\n{"text" "b"}]')
    assert "line 3, column 9 is not JSON" in problems(Files([f"{tmp_path}/b.json"]), tmp_path)


def test_rows_that_hold_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": null}\n{"text": 3}\n')
    assert "a.jsonl, line 2 the column holds a number" in problems(Files([f"{tmp_path}/a.jsonl"]), tmp_path)
    (tmp_path / "b.jsonl").write_text('"just a string"\n')
    assert "b.jsonl, line 1 holds a string" in problems(Files([f"{tmp_path}/b.jsonl"]), tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}\n', "line 2 has an object with two keys 'text'"),
        ("a.json", '[{"text": "a"}, {"text": "b", "meta": {"x": 1, "x": 2}}]', "two keys 'x'"),
        (
            "a.jsonl",
            '{"text": "a"}\n{"text": "ab\\ud800"}\n',
            "a.jsonl, line 2 holds half of a surrogate pair, \\ud800, as",
        ),
        ("a.json", '[{"text": "\\udc80"}]', "a.json, element 0 holds half of a surrogate pair"),
        ("a.json", '{"data": [{"text": "a"}]}', "jq -c '.data[]' FILE.json > FILE.jsonl"),
        ("a.json", '{\n "version": 1,\n "rows": [\n  {"text": "a"}]\n}', "jq -c '.rows[]' FILE.json > FILE.jsonl"),
        ("a.json", '{\n "text": "a",\n "text": "b"\n}', "line 1 has an object with two keys 'text'"),
    ],
)
def test_json_that_would_lose_text_is_refused(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    assert words in problems(Files([f"{tmp_path}/{name}"]), tmp_path)


def test_halves_of_characters_that_a_codec_spells_are_refused(tmp_path: Path) -> None:
    for name, content in (("a.txt", b"ab\\ud800"), ("a.csv", b"text\nab\\ud800")):
        (tmp_path / name).write_bytes(content)
        said = problems(Files([f"{tmp_path}/{name}"], encoding="raw_unicode_escape"), tmp_path)
        assert "document 1 holds half of a surrogate pair" in said and "data.source.encoding" in said


def test_one_object_over_several_lines_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"text": "a", "more": {"b": 1}}, indent=2))
    assert load(Files([f"{tmp_path}/a.json"]), tmp_path) == ["a"]


@pytest.mark.parametrize("format", ["parquet", "arrow"])
def test_a_damaged_table(tmp_path: Path, format: str) -> None:
    path = write(tmp_path, format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    text = problems(Files([str(path)]), tmp_path)
    assert f"cannot be read as {format}" in text and str(path) in text


def test_files_fingerprint_follows_the_content(tmp_path: Path) -> None:
    path = write(tmp_path, "jsonl")
    first = Files([str(path)]).fingerprint()
    assert Files([f"{tmp_path}/*.jsonl"]).fingerprint() == first
    assert Files([str(path)], split_text="line").fingerprint() != first
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert Files([str(path)]).fingerprint() != first


def test_python_sources_decode_as_python_does(tmp_path: Path) -> None:
    root = tmp_path / "root"
    for folder in ("", "site-packages", "inner"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / "b.py").write_bytes("# -*- coding: latin-1 -*-\nx = 'é'\n".encode("latin-1"))
    (root / "inner/a.py").write_bytes(b"\xef\xbb\xbfy = 1\n")
    (root / "bad.py").write_bytes(b"z = '\xff'\n")
    (root / "unknown.py").write_bytes(b"# coding: no-such-codec\n")
    (root / "site-packages/c.py").write_text("left out")
    (root / "note.txt").write_text("left out")
    source = PythonSources([str(root)])
    assert load(source, tmp_path) == ["# -*- coding: latin-1 -*-\nx = 'é'\n", "y = 1\n"]
    assert source.skipped == 2
    first = source.fingerprint()
    (root / "new.py").write_text("n = 1")
    assert source.fingerprint() != first


def test_the_standard_library_is_the_default(tmp_path: Path) -> None:
    names = {name for name, _ in PythonSources()._files()}
    assert {"argparse.py", "json/decoder.py"} <= names and not any("site-packages" in name for name in names)


def test_python_sources_do_not_stream_and_need_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.streaming"):
        PythonSources().stream()
    assert "no such folder" in problems(PythonSources([str(tmp_path / "none")]), tmp_path)


def test_hub_reads_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder, "parquet", column="content")
    source = Hub(str(folder), text_column="content")
    assert source.load("unused")["text"][:] == TEXTS
    assert [row["text"] for row in source.stream()] == TEXTS
    first = source.fingerprint()
    write(folder, "parquet", TEXTS[:2], column="content")
    assert source.fingerprint() != first
    for ask in (Hub(str(folder)).stream, lambda: Hub(str(folder)).load("unused")):
        with pytest.raises(UserError, match=r"columns there: id \(int64\), content"):
            ask()
    with pytest.raises(UserError, match=r"data\.source\.path"):
        Hub(str(folder), split="validation").load("unused")


def test_a_cached_data_set_of_the_hub_serves_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is laid out as `datasets` leaves it after a download; connections are refused."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    built = datasets.load_dataset("parquet", data_files=str(write(tmp_path, "parquet")), split="train")
    file = Path(built.cache_files[0]["filename"])
    cached = tmp_path / "cache" / "owner___tiny" / "default" / "0.0.0" / ("0" * 40)
    shutil.copytree(file.parent, cached)
    (cached / file.name).rename(cached / "tiny-train.arrow")
    source = Hub("owner/tiny")
    assert source.fingerprint() == source.fingerprint()
    assert source.load("unused")["text"][:] == TEXTS
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set, nothing is cached"):
        Hub("owner/another").load("unused")
