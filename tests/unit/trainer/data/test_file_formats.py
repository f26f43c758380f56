"""Tests of reading data files: suffixes, compression, delimiters, folders of mixed files, and malformed rows."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trireme.errors import UserError
from trireme.trainer.data.sources import Files

TEXTS = ["one", "two, three", "käse"]
LINES = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS).encode()


def zstd(content: bytes) -> bytes:
    return pa.compress(content, "zstd", asbytes=True)


def load(tmp_path: Path, *paths: object, **options: str) -> list[str]:
    return Files([str(path) for path in paths], **options).load(str(tmp_path / "scratch"))["text"][:]  # type: ignore[arg-type]


def refused(tmp_path: Path, *paths: object, **options: str) -> str:
    with pytest.raises(UserError) as caught:
        load(tmp_path, *paths, **options)
    return str(caught.value)


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".jl", ".jsonlines", ".ndjson", ".JSONL"])
def test_every_name_of_json_lines(tmp_path: Path, suffix: str) -> None:
    assert load(tmp_path, put(tmp_path / f"a{suffix}", LINES)) == TEXTS


@pytest.mark.parametrize("name", ["a.jsonl.{}", "a.jsonl"])
@pytest.mark.parametrize(
    ("suffix", "compress"), [("gz", gzip.compress), ("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd)]
)
def test_compressed_files(tmp_path: Path, suffix: str, compress: Callable[[bytes], bytes], name: str) -> None:
    path = put(tmp_path / name.format(suffix), compress(LINES))
    assert load(tmp_path, path) == TEXTS
    assert [row["text"] for row in Files([str(path)]).stream()] == TEXTS
    assert load(tmp_path, put(tmp_path / f"plain.jsonl.{suffix}", LINES)) == TEXTS  # decompressed on the way here
    assert load(tmp_path, put(tmp_path / f"b.csv.{suffix}", compress(b"text\none\n"))) == ["one"]
    cut = put(tmp_path / f"cut.jsonl.{suffix}", compress(LINES * 200)[:-9])
    assert f"{cut}\n  cannot be decompressed" in refused(tmp_path, cut)


def test_tables_compressed_as_a_whole_and_archives(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": TEXTS}), tmp_path / "a.parquet")
    packed = put(tmp_path / "b.parquet.gz", gzip.compress((tmp_path / "a.parquet").read_bytes()))
    assert "is compressed (gzip) as a whole" in refused(tmp_path, packed)
    os.rename(tmp_path / "a.parquet", tmp_path / "a.jsonl")
    assert "set data.source.format=parquet" in refused(tmp_path, tmp_path / "a.jsonl")
    assert "is an archive" in refused(tmp_path, put(tmp_path / "a.zip", b"PK\x03\x04"))
    assert "unpack it" in refused(tmp_path, put(tmp_path / "z.txt", b"PK\x03\x04"))


@pytest.mark.parametrize("name", ["a.py", "a.log", "corpus", "a.xlsx", "a.jsonl.bak", "a.unknown.gz"])
def test_an_unknown_suffix_is_not_taken_for_prose(tmp_path: Path, name: str) -> None:
    path = put(tmp_path / name, "some text")
    text = refused(tmp_path, path)
    assert str(path) in text and "set data.source.format" in text
    assert load(tmp_path, path, format="txt") == ["some text"]


def test_markdown_is_text(tmp_path: Path) -> None:
    assert load(tmp_path, put(tmp_path / "a.md", "# A"), put(tmp_path / "b.rst", "B")) == ["# A", "B"]


def test_a_folder_of_tables_passes_over_readme_and_license_files(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", LINES)
    for name in ("README.md", "LICENSE", "_SUCCESS", "state.json", "sub/x.bin", "license.txt"):
        put(tmp_path / "in" / name, "not a document")
    assert load(tmp_path, tmp_path / "in") == TEXTS
    taken, passed_over = Files([str(tmp_path / "in")]).notes()
    assert "1 file(s) from" in taken and "a.jsonl" in taken
    assert "6 file(s)" in passed_over and "README.md" in passed_over and "and 1 more" in passed_over


def test_a_folder_of_text_takes_its_readme(tmp_path: Path) -> None:
    put(tmp_path / "in/README.md", "read"), put(tmp_path / "in/b.txt", "b")
    assert load(tmp_path, tmp_path / "in") == ["read", "b"]


def test_a_folder_of_tables_and_text_is_refused(tmp_path: Path) -> None:
    put(tmp_path / "in/a.jsonl", LINES), put(tmp_path / "in/notes.txt", "mine")
    assert "notes.txt" in refused(tmp_path, tmp_path / "in")
    assert load(tmp_path, tmp_path / "in", format="txt") == ["mine"]
    put(tmp_path / "other/a.bin", "?")
    assert "skipped: a.bin" in refused(tmp_path, tmp_path / "other")


def test_one_path_may_be_a_string(tmp_path: Path) -> None:
    assert Files(str(put(tmp_path / "a.jsonl", LINES))).load(str(tmp_path / "s"))["text"][:] == TEXTS  # type: ignore[arg-type]


@pytest.mark.parametrize(("name", "delimiter"), [("a.tsv", "\t"), ("a.tab", "\t"), ("a.csv", ",")])
def test_rows_that_do_not_fit_their_header(tmp_path: Path, name: str, delimiter: str) -> None:
    def table(*rows: list[str]) -> str:
        return "".join(delimiter.join(row) + "\n" for row in rows)

    whole = table(["id", "text"], ["1", "a"], ["2", '"b\nb"'], ["3", ""])
    assert load(tmp_path, put(tmp_path / name, whole)) == ["a", "b\nb", ""]
    long = refused(tmp_path, put(tmp_path / name, whole + table(["4", "a", " b"])))
    assert f"{name}\n  line 6 has 3 cell(s), but the header names 2 column(s): id, text" in long and "quotes" in long
    short = refused(tmp_path, put(tmp_path / name, whole + table(["4"])))
    assert "line 6 has 1 cell(s)" in short
    assert "line 2 has 2 cell(s)" in refused(tmp_path, put(tmp_path / name, table(["text"], ["a", "b"])))
    assert "not CSV" in refused(tmp_path, put(tmp_path / name, table(["text"], ['"a'])))
    assert "twice" in refused(tmp_path, put(tmp_path / name, table(["text", "text"], ["a", "b"])))
    assert "columns there: id, words" in refused(tmp_path, put(tmp_path / name, table(["id", "words"])))


@pytest.mark.parametrize("delimiter", [";", "|", "\t"])
def test_other_delimiters(tmp_path: Path, delimiter: str) -> None:
    path = put(tmp_path / "a.csv", f"id{delimiter}text\n1{delimiter}one, two\n")
    text = refused(tmp_path, path)
    assert "data.source.delimiter" in text
    shown = {"\t": "\\t"}.get(delimiter, delimiter)
    assert load(tmp_path, path, delimiter=shown) == ["one, two"]
    with pytest.raises(ValueError, match="single character"):
        Files(["a"], delimiter=";;")


def test_the_fingerprint_knows_the_delimiter(tmp_path: Path) -> None:
    path = str(put(tmp_path / "a.csv", "text\n"))
    assert Files([path]).fingerprint() != Files([path], delimiter=";").fingerprint()


def test_json_lines_with_other_keys(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", LINES + b'{"txt": "four", "n": 4}\n')
    text = refused(tmp_path, path)
    assert "a.jsonl, line 4" in text and "columns there: txt, n (a number)" in text and "text_column=txt" in text
    deep = put(tmp_path / "b.jsonl", "[" * 100_000)
    assert "line 1 is not JSON" in refused(tmp_path, deep)
    long = put(tmp_path / "c.jsonl", f'{{"text": {"1" * 5001}}}')
    assert "line 1 holds a number of more than 4300 digits" in refused(tmp_path, long)
    control = put(tmp_path / "d.jsonl", '{"text": "a\x01b"}')
    assert "line 1, column 12 is not JSON: invalid control character\n" in refused(tmp_path, control)


def test_columns_that_hold_lists_say_what_they_are(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": "hi"}]}]
    for path in (put(tmp_path / "a.jsonl", json.dumps(rows[0])), tmp_path / "a.parquet"):
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        missing = refused(tmp_path, path)
        assert "list" in missing and "set data.source.text_column" not in missing
        text = refused(tmp_path, path, text_column="messages")
        assert "list" in text and "docs/chat.md" in text
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "n.parquet")
    assert "holds int64, not text" in refused(tmp_path, tmp_path / "n.parquet")


def test_nul_bytes_and_byte_order_marks(tmp_path: Path) -> None:
    assert "NUL" in refused(tmp_path, put(tmp_path / "a.txt", "a\0b"))
    assert "encoding=utf-16, whose mark" in refused(tmp_path, put(tmp_path / "b.txt", "grün".encode("utf-16")))
    assert load(tmp_path, put(tmp_path / "c.csv", "\ufefftext\nbom\n")) == ["bom"]
    assert load(tmp_path, put(tmp_path / "d.jsonl", b"\xef\xbb\xbf" + LINES)) == TEXTS


def test_files_without_text_are_remembered(tmp_path: Path) -> None:
    empty, header = put(tmp_path / "a.txt", ""), put(tmp_path / "b.csv", "text\n")
    source = Files([str(empty), str(header), str(put(tmp_path / "c.jsonl", LINES))])
    source.load(str(tmp_path / "scratch"))
    assert source.without_text == [str(empty), str(header)]


def test_content_is_equal_for_copies(tmp_path: Path) -> None:
    first, second = put(tmp_path / "a/x.jsonl", LINES), put(tmp_path / "b/x.jsonl", LINES)
    os.utime(second, ns=(1, 1))
    assert Files([str(first)]).content() == Files([str(second)]).content()
    put(second, LINES + LINES)
    assert Files([str(first)]).content() != Files([str(second)]).content()


def test_a_check_reads_small_files_whole_and_heads_of_large_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trireme.trainer.data import sources

    path = put(tmp_path / "a.jsonl", LINES * 100)
    assert Files([str(path)]).look() == TEXTS * 100
    monkeypatch.setattr(sources, "SMALL", 100)
    assert Files([str(path)]).look() is None
    put(tmp_path / "b.txt", "long " * 100)
    with pytest.raises(UserError, match="line 1"):
        Files([str(path), str(tmp_path / "b.txt")], text_column="no").look()
