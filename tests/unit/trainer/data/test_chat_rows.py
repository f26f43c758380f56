"""Tests of chat data sets: which files and columns are read, what becomes of long or unusable rows, and caching,
packing and batches.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.chats import CALL, TEMPLATES, TOOLS, answer, user
from trireme.errors import UserError
from trireme.models.loss import IGNORE
from trireme.trainer.data.chat.chat_config import ChatConfig
from trireme.trainer.data.check_data import check_data
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.open_corpus import open_corpus
from trireme.trainer.data.row_files import RowFiles
from trireme.trainer.data.rows_corpus import RowsCorpus
from trireme.trainer.data.tokenizer import TokenizerConfig
from trireme.trainer.settings import TrainerConfig
from trireme.trainer.tasks.causal_lm import CausalLM

ROWS: list[dict[str, Any]] = [
    {"messages": [user(f"What is {number}?"), answer(f"It is {number} {'and more ' * (number % 9)}.")]}
    for number in range(60)
]
Opened = Callable[..., RowsCorpus]


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    def make(
        rows: list[dict[str, Any]], block_size: int = 64, columns: Any = None, packing: Any = True, **chat: Any
    ) -> RowsCorpus:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        config = DataConfig(
            source={"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": [str(path)], "nested": "text"},
            chat=ChatConfig(**chat),
            columns=columns or {},
            packing=packing,
            block_size=block_size,
            tokenizer=TokenizerConfig(vocab_size=300),
            held_out=0.2,
            cache_dir=str(tmp_path / "cache"),
        )
        settings = TrainerConfig(max_steps=4, global_batch_size=8, micro_batch_size=4)
        found = open_corpus(config, 0, settings, CausalLM())
        assert isinstance(found, RowsCorpus)
        return found

    return make


def test_batches_hold_shifted_labels_and_the_tokenizer_has_the_size_of_the_recipe(opened: Opened) -> None:
    corpus = opened(ROWS)
    assert len(corpus.tokenizer) == 300 and corpus.facts.vocabulary is not None
    assert corpus.tokenizer.decode(corpus.facts.vocabulary.eos) == "<|im_end|>"
    batch = next(corpus.train_batches({}, 0, 4))
    for micro in batch.micro_batches:
        labels, tokens = micro.targets["labels"], micro.inputs["input_ids"]
        kept = labels[:, :-1] != IGNORE
        assert (labels[:, :-1][kept] == tokens[:, 1:][kept]).all()
        for row, marks in zip(tokens, kept, strict=True):
            text = corpus.tokenizer.decode(row[1:][marks])
            assert text.startswith("It is") and text.endswith(".<|im_end|>")
    assert len(corpus.train) + len(corpus.held_out) == 60
    assert corpus.train.lengths is not None
    every = corpus.train.__getitems__(range(len(corpus.train)))
    assert [len(one["input_ids"]) for one in every] == corpus.train.lengths.tolist()
    assert "«" not in corpus.shown(0)["chat"] and "What is" in corpus.shown(0)["chat"]


def test_conversations_share_rows_with_their_labels(opened: Opened) -> None:
    alone, packed = opened(ROWS, 200), opened(ROWS, 200, packing="bins")
    assert packed.train.bins.fill > 0.85 and len(packed.train) < len(alone.train) / 2
    assert any("to a row" in note for note in packed.describe("train").notes)
    found = []
    for corpus in (alone, packed):
        samples = [corpus.train[index] for index in range(len(corpus.train))]
        micro = corpus.collator.micro_batch(samples)
        found.append((int((micro.targets["labels"] != IGNORE).sum()), micro.length))
    assert found[0] == found[1]
    shown = packed.tokenizer.decode(packed.train[0]["input_ids"][packed.train[0]["labels"] != IGNORE])
    assert shown.startswith("It is") and shown.count("It is") == shown.count("<|im_end|>") > 1


def test_rows_are_encoded_once(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(ROWS)
    monkeypatch.setattr("trireme.trainer.data.chat.prepare_chats.encode_row", None)
    again = opened(ROWS)
    for one, other in zip(first.train, again.train, strict=True):
        assert np.array_equal(one["labels"], other["labels"]) and np.array_equal(one["input_ids"], other["input_ids"])
    assert first.prints()["tokens"] == again.prints()["tokens"]
    with pytest.raises(TypeError):
        opened(ROWS, system="Another.")
    monkeypatch.undo()
    assert opened(ROWS, system="Another.").prints()["tokens"] != first.prints()["tokens"]


def test_long_rows_are_cut_dropped_or_refused_and_counted(opened: Opened) -> None:
    limit = 25
    whole = opened(ROWS).train.lengths
    assert whole is not None
    long = int((whole > limit).sum())
    assert 0 < long < len(whole)
    cut = opened(ROWS, limit)
    assert any(f"{long} of {len(whole)} rows have more than" in note for note in cut.train.notes)
    assert max(len(one["input_ids"]) for one in cut.train) == limit
    dropped = opened(ROWS, limit, too_long="drop")
    assert len(dropped.train) == len(whole) - long and "are left out" in dropped.train.notes[0]
    with pytest.raises(UserError, match="too_long=cut or drop"):
        opened(ROWS, limit, too_long="refuse")
    facts = dropped.describe("train")
    assert facts.notes == list(dropped.train.notes)
    assert {spread.name for spread in facts.spreads} == {"tokens", "tokens that are learnt"}


def test_a_row_is_counted_as_cut_or_as_left_out_and_not_twice(opened: Opened) -> None:
    asked = [{"messages": [user("and more " * 40 + str(number)), answer("Yes.")]} for number in range(30)]
    corpus = opened([*ROWS, *asked], 25)
    cut, left = (next(note for note in corpus.train.notes if words in note) for words in ("they are cut", "left out"))
    assert "without a label in their 25 first tokens" in left
    spread = next(each for each in corpus.describe("train").spreads if each.name == "tokens")
    assert spread.cut == int(cut.split()[0]) > 0
    count = int(left.split()[4])
    assert len(corpus.train) == count - int(left.split()[2])
    dropped = opened([*ROWS, *asked], 25, too_long="drop")
    assert not any("without a label" in note for note in dropped.train.notes)


def test_rows_without_labels_are_left_out(opened: Opened) -> None:
    silent = [{"messages": [user(f"Nothing {number}"), answer("a", train=False)]} for number in range(20)]
    corpus = opened([*ROWS, *silent])
    notes = [*corpus.train.notes, *corpus.held_out.notes]
    assert sum(int(note.split()[2]) for note in notes if "without a label" in note) == 20
    with pytest.raises(UserError, match=r"gives no row with a label; of (\d+) rows: \1 without any label\n"):
        opened(silent)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"too_long": "drop"}, r"of (\d+) rows: \1 dropped with more than data.block_size=10 tokens"),
        ({}, r"of (\d+) rows: \1 whose first label is behind data.block_size=10 tokens \(token \d\d or later\)"),
    ],
)
def test_rows_that_are_all_too_long_are_counted(opened: Opened, options: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=f"gives no row with a label; {why}"):
        opened(ROWS, 10, **options)


def test_unusable_rows_end_the_run_or_are_left_out(opened: Opened) -> None:
    bad = [{"messages": [user(f"a{number}"), {"role": "assistant", "tool_calls": [CALL]}]} for number in range(30)]
    with pytest.raises(UserError, match=r"rows are not usable: \d+ since the template refuses it[\s\S]*leave_out"):
        opened([*ROWS, *bad])
    corpus = opened([*ROWS, *bad], unusable="leave_out")
    assert len(corpus.train) + len(corpus.held_out) == 60
    assert "rows that are not usable" in corpus.train.notes[0]


def test_labels_without_a_stop_are_refused(opened: Opened) -> None:
    with pytest.raises(UserError, match="never learns the token that ends a turn"):
        opened(ROWS, template=TEMPLATES["alpaca_endless"]["template"])
    with pytest.raises(UserError, match=r"data\.block_size=14 cuts every row before that token"):
        opened(ROWS, 14)


def test_files_keep_nested_values_as_they_are(tmp_path: Path) -> None:
    rows = [
        {"messages": [user("a"), {"role": "assistant", "tool_calls": [{"function": {"arguments": {"x": None}}}]}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "b"}]}], "tools": [{"name": "f"}], "n": 1},
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    found: Any = list(RowFiles([str(path)], nested="text").rows(str(tmp_path)))
    assert [json.loads(row["messages"]) for row in found] == [row["messages"] for row in rows]
    assert found[0]["tools"] is None and found[1]["n"] == 1
    (tmp_path / "list.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="not an object with columns"):
        list(RowFiles([str(tmp_path / "list.jsonl")], nested="text").rows(""))


def test_lists_of_messages_in_prompts_and_completions(opened: Opened) -> None:
    """They are messages, while a text that looks like them stays a text, and is noted."""
    found = opened([{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in ROWS])
    assert "user\nWhat is" in found.shown(0)["chat"] and "assistant\nIt is" in found.shown(0)["chat"]
    texts = [{"prompt": "Write a chat.", "completion": json.dumps(row["messages"])} for row in ROWS]
    noted = opened(texts, 512)
    assert "assistant\n[{" in noted.shown(0)["chat"]
    assert any("reads like a list of messages" in note for note in noted.train.notes)


def test_parquet_and_other_columns(opened: Opened, tmp_path: Path) -> None:
    from datasets import Dataset

    named = opened([{"dialog": row["messages"]} for row in ROWS], columns={"messages": "dialog"})
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "rows.parquet"))
    source = {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": [str(tmp_path / "rows.parquet")]}
    config = DataConfig(
        source=source, chat=ChatConfig(), block_size=64, tokenizer=named.config.tokenizer, cache_dir=str(tmp_path)
    )
    settings = TrainerConfig(max_steps=4, global_batch_size=8, micro_batch_size=4)
    corpus = open_corpus(config, 0, settings, CausalLM())
    assert isinstance(corpus, RowsCorpus)
    assert "What is" in corpus.shown(0)["chat"] and "What is" in named.shown(0)["chat"]
    wrong = DataConfig(source=source, chat=ChatConfig(), columns={"prompt": "messages"}, cache_dir=str(tmp_path))
    found = check_data(wrong, None, True, {"messages": False, "prompt": False, "completion": False})
    assert not found or "none of the columns" in found[0].why


def test_packed_conversations_hold_the_labels_of_single_ones(opened: Opened) -> None:
    alone, packed = opened(ROWS), opened(ROWS, packing="bins")
    assert alone.prints()["tokens"] == packed.prints()["tokens"]

    def labels(corpus: RowsCorpus) -> int:
        samples = (sample["labels"] for sample in (corpus.train[number] for number in range(len(corpus.train))))
        return sum(int((each != IGNORE).sum()) for each in samples)

    assert labels(packed) == labels(alone) and len(packed.train) < len(alone.train)


ALPACA = {"instruction": "Translate.", "input": "un chat", "output": "a cat"}
DOLLY = {"instruction": "Translate.", "context": "un chat", "response": "a cat", "category": "closed_qa"}
PLAIN = {"prompt": "instruction", "completion": "output"}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (ALPACA, {}),
        (DOLLY, {}),
        (ALPACA, PLAIN),
        (DOLLY, {"prompt": "instruction", "completion": "response"}),
        (
            {"ask": "Translate.", "more": "un chat", "said": "a cat"},
            {"prompt": "ask", "input": "more", "completion": "said"},
        ),
    ],
)
def test_an_instruction_is_read_with_the_text_that_belongs_to_it(opened: Opened, row: Any, columns: Any) -> None:
    said = next(name for name in ("output", "response", "said") if name in row)
    rows = [{**row, "id": str(number), said: f"a cat {number}"} for number in range(20)]
    corpus = opened(rows, columns=columns)
    assert corpus.tokenizer.decode(corpus.rows[0]["input_ids"]).startswith(
        "<|im_start|>user\nTranslate.\n\nun chat<|im_end|>\n<|im_start|>assistant\na cat "
    )
    (line,) = corpus.stats.unread_columns
    assert line == f"data.source: columns that are not read: {'category, id' if row is DOLLY else 'id'}"


def test_an_empty_input_is_none_and_one_that_is_no_text_is_refused(opened: Opened) -> None:
    rows = [{**ALPACA, "input": " ", "output": f"a cat {number}"} for number in range(20)]
    assert "user\nTranslate.<|im_end|>" in opened(rows).tokenizer.decode(opened(rows).rows[0]["input_ids"])
    with pytest.raises(UserError, match="its input is list, not a text"):
        opened([{**ALPACA, "input": ["a"], "output": str(number)} for number in range(20)])


def test_a_column_input_beside_a_prompt_or_messages_is_named_and_not_read(opened: Opened) -> None:
    for row in ({"prompt": "a", "completion": "b"}, {"messages": [user("a"), answer("b")]}):
        rows = [{**row, "system": str(number), "input": "un chat", "instruction": "c"} for number in range(20)]
        corpus = opened(rows)
        assert corpus.stats.unread_columns == ["data.source: columns that are not read: input, instruction"]


@pytest.mark.parametrize("written", ["list", "json"])
def test_functions_are_tools(opened: Opened, written: str) -> None:
    (tool,) = TOOLS
    template, messages = TEMPLATES["qwen2_5"], [user("a"), answer("b")]
    chat = {"template": template["template"], "control_tokens": template["control"]}
    functions: Any = [tool["function"]]
    given = functions if written == "list" else json.dumps(functions)
    rows = [{"messages": messages, "functions": given, "system": str(number), "n": 0} for number in range(20)]
    tools = [{"messages": messages, "tools": TOOLS, "system": str(number), "n": 0} for number in range(20)]
    found, wanted = (opened(each, 512, **chat) for each in (rows, tools))
    texts = [
        sorted(corpus.tokenizer.decode(each["input_ids"]) for part in (corpus.rows, corpus.held_out) for each in part)
        for corpus in (found, wanted)
    ]
    assert texts[0] == texts[1] and '"weather"' in texts[0][0] and found.stats.unread_columns[0].endswith("read: n")
    both = opened([{**row, "tools": TOOLS} for row in rows], 512, **chat)
    assert any("the functions are not read beside the tools" in note for note in both.rows.notes)
    with pytest.raises(UserError, match="one of its functions is int, not a name with parameters"):
        opened([{**row, "functions": [7]} for row in rows], **chat)
