"""``trireme generate --chat``: conversations of files and prompts, tokens by the template, and wrong options."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.chats import TOOLS, answer, small_tokenizer, tokenizer_for, user
from trireme.errors import UserError
from trireme.launch.chat_prompt import chat_inputs, chat_prompt, stops
from trireme.launch.cli import main

BEGUN = [user("вопрос"), answer("It is")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "chat.json"
    path.write_text(json.dumps(BEGUN))
    return path


def text_of(prompt: Any, name: str = "chatml") -> str:
    tokenizer = tokenizer_for(name)
    return tokenizer.decode(chat_inputs(tokenizer, prompt)["input_ids"][0])


def test_a_prompt_is_a_message_of_the_user() -> None:
    found = chat_prompt(None, "вопрос", "σύστημα")
    turns = [f"<|im_start|>{role}\n{said}<|im_end|>\n" for role, said in (("system", "σύστημα"), ("user", "вопрос"))]
    assert text_of(found) == "".join(turns) + "<|im_start|>assistant\n"
    assert found.begun == ""


def test_a_last_message_of_the_assistant_is_gone_on_with(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = chat_prompt(str(file), None)
    assert text_of(found).endswith("<|im_start|>assistant\nIt is") and found.begun == "It is"
    assert text_of(chat_prompt(str(file), None, generation_prompt=True)).endswith(
        "It is<|im_end|>\n<|im_start|>assistant\n"
    )
    assert text_of(chat_prompt(str(file), "ещё")).endswith("ещё<|im_end|>\n<|im_start|>assistant\n")
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps({"messages": BEGUN, "tools": TOOLS})))
    with_tools = chat_prompt("-", "погода?")
    assert text_of(with_tools, "qwen2_5").count("weather") == 1
    said = chat_prompt(None, "It is", continue_final_message=True)
    assert text_of(said).endswith("<|im_start|>user\nIt is")


def test_an_answer_ends_with_its_turn() -> None:
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[3, 5]))
    tokenizer = tokenizer_for("gemma")
    ends = tokenizer.convert_tokens_to_ids(["<eos>", "<end_of_turn>"])
    assert stops(tokenizer, model) == sorted({3, 5, *ends})


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "holds no JSON"),
        ("3", "holds int, not messages"),
        ('[{"content": "a"}]', "is no conversation: one of its messages has no role"),
        ("[]", "needs a message to answer"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content)
    with pytest.raises(UserError, match=why):
        chat_prompt(str(path), None)


def test_templates_that_are_not_there_or_refuse() -> None:
    with pytest.raises(UserError, match="has no chat template"):
        chat_inputs(small_tokenizer(), chat_prompt(None, "a"))
    with pytest.raises(UserError, match="System role not supported"):
        chat_inputs(tokenizer_for("gemma"), chat_prompt(None, "a", "b"))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--chat", "--prompt", "a", "--continue-final-message", "--add-generation-prompt"], "leave one of them out"),
        (["--chat"], "needs a message to answer"),
        (["--chat", "missing.json"], "cannot be read: No such file"),
        (["--prompt", "a", "--system", "b"], "is about conversations"),
        ([], "is required: how the text begins"),
    ],
)
def test_options_that_are_refused(options: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "folder", *options]) == 2
    assert told in capsys.readouterr().err
