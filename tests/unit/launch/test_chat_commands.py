"""Tests of ``trireme check`` and ``trireme data`` on conversations: colours and counts of learnt text, rows that are
cut or left out, mixtures of sources, and refusals.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from helpers.chats import CALL, TEMPLATES, answer, user
from helpers.recipes import recipe_of
from rich.console import Console
from trireme.launch.cli import main
from trireme.launch.data_terminal import print_report
from trireme.trainer.data_report import report_data

RECIPE = """
defaults: [/base, /model: persimmon_tiny, /data: chat, _self_]
model: {config: {vocab_size: 300}}
data:
  source: {paths: [chats.jsonl]}
  tokenizer: {vocab_size: 300}
  block_size: 48
  held_out: 0.2
trainer: {max_steps: 1, global_batch_size: 8, micro_batch_size: 2}
"""


@pytest.fixture(autouse=True)
def _recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"messages": [user(f"How many {n}?"), answer(f"There are {n}" + " more" * (n % 12))]} for n in range(40)]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("chat.yaml").write_text(RECIPE)


def test_labels_are_coloured_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "chat.yaml"]) == 0
    assert main(["data", "chat.yaml", "--html", "data.html"]) == 0
    told = capsys.readouterr().out
    assert re.search(r"«There are \d+( more)*<\|im_end\|>»", told) and "«How" not in told
    page = Path("data.html").read_text()
    assert re.search(r'class="learnt">There are \d+', page) and re.search(r'class="ignored">[^/]*How many', page)
    report = report_data(recipe_of(Path("chat.yaml"), Path("run")), 1)
    console = Console(force_terminal=True, color_system="truecolor", record=True, width=100)
    print_report(report, console)
    assert re.search(r"\x1b\[1;32mThere are", console.export_text(styles=True))


def test_what_is_cut_and_left_out_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with Path("chats.jsonl").open("a") as file:
        file.writelines(
            json.dumps({"messages": [user(f"a{n}"), answer("b", tool_calls=[CALL])]}) + "\n" for n in range(20)
        )
        file.writelines(json.dumps({"messages": [user(f"c{n}"), answer("d", train=False)]}) + "\n" for n in range(20))
    options = ["data.chat.unusable=leave_out", "data.block_size=24", "--samples", "0"]
    assert main(["data", "chat.yaml", *options]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"\d+ of \d+ rows have more than data.block_size=24 tokens: they are cut", told)
    assert re.search(r"left out \d+ of \d+ rows without a label", told)
    reason = "since the template leaves out tool_calls of message 2"
    assert re.search(rf"left out \d+ of \d+ rows that are not usable: \d+ {reason}", told)


def test_a_mixture_of_conversations(capsys: pytest.CaptureFixture[str]) -> None:
    rows = "_target_:trireme.trainer.data.row_files.RowFiles,paths:[chats.jsonl],nested:text"
    python = "_target_:trireme.trainer.data.chat.python_questions.PythonQuestions,modules:[copy,glob,heapq]"
    sources = f"data.sources={{a:{{source:{{{rows}}}}},b:{{source:{{{python}}},columns:{{}}}}}}"
    lines = Path("chats.jsonl").read_text().splitlines()
    Path("chats.jsonl").write_text("".join(json.dumps({**json.loads(line), "tools": ""}) + "\n" for line in lines))
    assert main(["data", "chat.yaml", sources, "data.chat.unseen=allow", "data.block_size=128"]) == 0
    assert "50.0%" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["data.chat.template=alpaca.jinja"], "never learns the token that ends a turn"),
        (["data.chat.template=missing.jinja"], "cannot be read: No such file"),
        (["data.chat.los=all"], "did you mean data.chat.loss"),
        (["task=masked_lm"], "this task does not learn to write text"),
        (["data.columns.messages=dialog"], "gives no column dialog"),
        (["data.chat.tools=[no.such]"], "cannot be imported"),
        (
            ["data.streaming=true", "data.deduplicate=false", "data.tokenizer.sample_documents=9"],
            "does not go with a task that learns from rows",
        ),
    ],
)
def test_recipes_that_are_refused(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("alpaca.jinja").write_text(TEMPLATES["alpaca_endless"]["template"])
    for command in ("check", "data"):
        assert main([command, "chat.yaml", *options]) == 2
        assert told in capsys.readouterr().err


def test_rows_without_conversations_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    Path("chats.jsonl").write_text('{"text": "a"}\n' * 9)
    assert main(["check", "chat.yaml"]) == 2
    assert "messages, conversations, or prompt and completion" in capsys.readouterr().err
