"""``trireme check`` inspects the data: files, formats, columns, number of documents, and custom sources."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.recipes import TINY
from trireme.launch.cli import main
from trireme.trainer.data.check_data import check_data
from trireme.trainer.data.data_config import DataConfig

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """Check the tiny recipe on files of ``tmp_path``, which is the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "good.jsonl").write_text("".join(f'{{"text": "document {n} of this corpus"}}\n' for n in range(40)))

    def run(*overrides: str) -> tuple[int, str]:
        code = main(["check", str(TINY), "data=files", "data.held_out=0.2", *overrides])
        said = capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.err

    return run


def test_good_data(check: Check) -> None:
    assert check("data.source.paths=[good.jsonl]") == (0, "")


@pytest.mark.parametrize(
    ("name", "content", "options", "words"),
    [
        ("none.jsonl", None, [], ["data.source.paths = 'none.jsonl'", "no file there"]),
        ("a.jsonl", '{"words": "a"}\n', [], ["data.source.text_column", "columns there: words"]),
        ("a.log", "text", [], ["set data.source.format"]),
        ("a.csv", "id,text\n1,a,b\n", [], ["line 2 has 3 cell(s)"]),
        ("a.csv", "id;text\n1;a\n", [], ["data.source.delimiter"]),
        ("a.txt", "", [], ["data.source", "gives no documents"]),
        ("a.txt", "one document", [], ["data.held_out = 0.2", "the only document"]),
        ("a.txt", "one\ntwo\nthree\n", ["data.source.split_text=line"], ["data.block_size", "fewer than one block"]),
        ("a.txt", "gr\u00fcn", ["data.source.encoding=ascii"], ["is not valid ascii"]),
        ("a.jsonl", '{"text": 1}\n', [], ["holds a number, not text"]),
    ],
)  # fmt: skip
def test_bad_data(
    check: Check, tmp_path: Path, name: str, content: str | None, options: list[str], words: list[str]
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    code, said = check(f"data.source.paths=[{name}]", *options)
    assert code == 2
    for word in words:
        assert word in said, said


def test_the_evaluation_source_is_looked_at_too(check: Check, tmp_path: Path) -> None:
    code, said = check(
        "data.source.paths=[good.jsonl]",
        "data.eval_source={_target_: trireme.trainer.data.sources.Files, paths: [good.jsonl], text_column: words}",
    )
    assert code == 2 and "data.eval_source.text_column" in said and "data.source" not in said


def test_own_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_parts.py").write_text("class Plain:\n    def load(self, cache_dir):\n        return ['a']\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    problems = check_data(DataConfig(source={"_target_": "own_parts.Plain"}))
    sys.modules.pop("own_parts", None)
    assert [(problem.field, problem.why) for problem in problems] == [("data.source", "has no method fingerprint")]
    assert all("docs/extending.md" in problem.fix for problem in problems)
