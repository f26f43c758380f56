"""``trireme check`` inspects the data: files, formats, columns, rows, number of documents, and custom sources."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers.recipes import TINY
from trireme.launch.cli import main
from trireme.trainer.data.check_data import check_data
from trireme.trainer.data.data_config import DataConfig

Check = Callable[..., tuple[int, str]]


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Check:
    """Run ``trireme check`` with the tiny recipe on files of ``tmp_path``, which is the current folder."""
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


ASKED, SAID = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
GOOD: dict[str, dict[str, Any]] = {
    "chat": {"messages": [ASKED, SAID]},
    "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
}


@pytest.mark.parametrize(
    ("kind", "row", "why"),
    [
        ("chat", {"messages": ["a", "b"]}, "message 1 is str, not a role with a content"),
        ("chat", {"messages": "a"}, "its messages are a text that is not valid JSON"),
        ("chat", {"messages": {"role": "user"}}, "its messages are dict, not a list"),
        ("chat", {"messages": [{"role": "user", "text": "a"}]}, "message 1 has no content; it has role, text"),
        ("chat", {"messages": [{**ASKED, "content": {"a": 1}}]}, "message 1 has a content that is dict"),
        ("chat", {"messages": [{**ASKED, "content": [{"type": "audio"}]}]}, "holds audio, and only texts are read"),
        ("chat", {"messages": None}, "it has neither messages nor a prompt with its completion"),
        ("chat", {"messages": []}, "it has no messages"),
        ("preferences", {**GOOD["preferences"], "chosen": SAID}, "its chosen is dict, neither a text nor a list"),
        ("preferences", {**GOOD["preferences"], "rejected": None}, "it has nothing in the column rejected"),
        ("preferences", {**GOOD["preferences"], "chosen": [SAID]}, "is a text, and the other a list of messages"),
        ("preferences", {**GOOD["preferences"], "prompt": ["a"]}, "message 1 is str, not a role with a content"),
        ("preferences", {"chosen": "b", "rejected": "c"}, "it has no prompt, and its answers are texts"),
    ],
)
@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rows_of_a_shape_that_training_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, row: Any, why: str, form: str
) -> None:
    path, count = tmp_path / f"rows.{form}", 30 if form == "parquet" else 1
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist([row] * 30), path)
    else:
        path.write_text("".join(json.dumps(each) + "\n" for each in [*[GOOD[kind]] * 29, row]))
    task = ["task=dpo"] if kind == "preferences" else []
    recipe = [str(TINY), f"data={kind}", f"data.source.paths=[{path}]", "data.tokenizer.vocab_size=300", *task]
    assert main(["check", *recipe]) == 2
    said = capsys.readouterr().err
    assert why in said and f"{count} of 30 rows" in said and said.count("fix:") == 1, said
    assert main(["check", *recipe, "data.chat.unusable=leave_out"]) == 0


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": [ASKED, {"role": "agent", "content": "b"}]}, "it has messages of the role agent, which neither"),
        ({"messages": [ASKED, SAID], "tools": [{"name": "f"}]}, "the template leaves out the tools"),
    ],
)
def test_rows_that_the_template_does_not_take(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Any, why: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in [GOOD["chat"], row] * 15))
    recipe = [str(TINY), "data=chat", f"data.source.paths=[{path}]", "data.tokenizer.vocab_size=300"]
    assert main(["check", *recipe]) == 2
    said = capsys.readouterr().err
    assert f"10 of the first 20 rows are not usable: {why}" in said and "(the first is rows.jsonl, line 2)" in said
    assert main(["check", *recipe, "data.chat.unusable=leave_out"]) == 0


def test_columns_that_are_there_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{n}", "response": "a"}) + "\n" for n in range(30)))
    for kind, task in (("chat", []), ("preferences", ["task=dpo"]), ("preferences", ["task=kto"])):
        assert main(["check", str(TINY), f"data={kind}", f"data.source.paths=[{path}]", *task]) == 2
        assert "; columns there: question, response\n" in capsys.readouterr().err


def test_a_row_that_is_no_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rows, why in (([GOOD["chat"], 5], "line 2 holds a number"), (["a", GOOD["chat"]], "line 1 holds a string")):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
        assert main(["check", str(TINY), "data=chat", f"data.source.paths=[{tmp_path}/rows.jsonl]"]) == 2
        assert f"rows.jsonl, {why}, not an object with columns" in capsys.readouterr().err


def test_rows_that_training_takes_are_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [GOOD["chat"], {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]
    rows += [{"prompt": "a", "completion": [SAID], "id": 3}, {"messages": json.dumps([ASKED, SAID])}]
    path.write_text("".join(json.dumps(each) + "\n" for each in rows * 10))
    recipe = [str(TINY), "data=chat", f"data.source.paths=[{path}]", "data.tokenizer.vocab_size=300"]
    assert main(["check", *recipe]) == 0
    assert "not read" not in capsys.readouterr().out
    path.write_text("".join(json.dumps({"id": number, **GOOD["chat"]}) + "\n" for number in range(30)))
    assert main(["check", *recipe]) == 0
    assert "note   data.source: columns that are not read: id" in capsys.readouterr().out
