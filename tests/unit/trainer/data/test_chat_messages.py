"""Tests of reading chat messages: the forms of contents and tool calls, the names of roles, and which messages are
learnt or refused.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from helpers.chats import CALL, TEMPLATES, TOOLS, answer, encoder_for, runs, user
from trireme.trainer.data.chat.conversation import conversation_of
from trireme.trainer.data.data_config import DataConfig
from trireme.trainer.data.nested_cells import kept_text

END = "<|im_end|>"
DEEP: Any = "x"
for _ in range(2000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("message", "why"),
    [
        ({"role": "assistant", "value": "a"}, "message 2 has no content; it has role, value"),
        ({"role": "assistant", "contents": "a"}, "message 2 has no content; it has role, contents"),
        ({"from": "gpt", "val": "a"}, "message 2 has no content; it has from, val"),
        ({"from": "gpt", "role": "assistant", "value": "a"}, "message 2 has no content; it has from, role, value"),
        ({"role": "assistant", "content": None}, "message 2 has no content; it has role"),
        ({"role": "tool", "content": None, "tool_calls": []}, "message 2 has no content; it has role, tool_calls"),
        ({"role": ["user"], "content": "a"}, "message 2 has a role that is list"),
        (answer("", tool_calls=[{"function": 7}]), "message 2: the function of a call is int"),
        (answer("", tool_calls=[{"function": [1]}]), "message 2: the function of a call is list"),
        (answer("", tool_calls=[{"function": "f"}]), "message 2: the function of a call is str"),
        (answer("", tool_calls=[{"function": {}}]), "message 2: a call names no function; it has nothing"),
        (answer("", tool_calls=["f"]), "message 2: one of its tool_calls is str"),
        (answer("", tool_calls=5), "message 2: its tool_calls are int, not a list"),
        (answer("a", function_call={"name": "f"}, tool_calls=[CALL]), "message 2 has both function_call and"),
        (
            {"role": "function_call", "content": "no JSON"},
            "message 2: its function calls are a text that is not valid JSON",
        ),
        (answer("a", more=DEEP), "message 2: its values are nested too deeply"),
        (answer("a", weight="0"), "message 2 has weight='0', which is neither 0 nor 1"),
        (answer("a", weight=0.5), "message 2 has weight=0.5"),
        (answer("a", weight=-1), "message 2 has weight=-1"),
        (answer("a", weight=0, train=True), "train=True and weight=0, which contradict each other"),
        (answer("a", train=0), "message 2 has train=0, which is neither true nor false"),
        ({"role": "assistant", "content": [{"type": "text", "text": 5}]}, "message 2 has a part whose text is int"),
        ({"role": "assistant", "content": [5]}, "message 2 has a content with a part that is int"),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_messages_that_are_refused(message: dict[str, Any], why: str, as_text: bool) -> None:
    row: dict[str, Any] = {"messages": [user("вопрос"), message, answer("b")]}
    if as_text and message.get("more") is DEEP:
        why = "its messages are"
    try:
        row = {"messages": json.dumps(row["messages"])} if as_text else row
    except RecursionError:
        return
    with pytest.raises(ValueError, match=why):
        encoder_for("chatml")(row)


@pytest.mark.parametrize(
    "message",
    [
        {"from": "gpt", "content": "Yes."},
        answer("Yes.", weight=1),
        answer("Yes.", weight=1.0),
        answer("Yes.", function_call=None),
        answer("Yes.", function_call={}),
    ],
)
def test_messages_that_are_learnt(message: dict[str, Any]) -> None:
    encoder = encoder_for("chatml")
    assert runs(encoder, encoder({"messages": [user("вопрос"), message]})) == ["Yes." + END]
    assert runs(encoder, encoder({"messages": [user("вопрос"), answer("")]})) == [END]


def test_former_calls_of_functions_are_calls() -> None:
    called = {"name": "weather", "arguments": '{"city": "Zürich"}'}
    encoder = encoder_for("qwen2_5")
    for call in (
        {"role": "assistant", "content": None, "function_call": called},
        {"role": "assistant", "content": "", "function_call": json.dumps(called)},
        {"role": "function_call", "content": json.dumps(called)},
    ):
        result = {"role": "function", "name": "weather", "content": "גשם"}
        chat = encoder({"messages": [user("погода?"), call, result, answer("Rain.")], "tools": TOOLS})
        assert runs(encoder, chat) == [TEMPLATES["qwen2_5"]["call"] + END, "Rain." + END]
        assert "<tool_response>\nגשם" in chat.text
    with pytest.raises(ValueError, match="the template refuses it"):
        encoder_for("chatml")({"messages": [user("a"), {"role": "assistant", "function_call": called}]})
    kept = conversation_of({"messages": [{"role": "function", "content": "r"}]}, roles={"function": "function"})
    assert kept.messages[0]["role"] == "function"


@pytest.mark.parametrize("said", ['[{"role": "assistant", "content": "hi"}]', '[{"name": "Ann"}]', '{"a": 1}', "[]"])
def test_a_text_in_a_prompt_or_completion_stays_a_text(said: str) -> None:
    encoder = encoder_for("chatml")
    chat = encoder({"prompt": "вопрос", "completion": said})
    assert runs(encoder, chat) == [said + END]
    assert ("reads like a list of messages" in " ".join(chat.notes)) == ("role" in said)
    assert f"user\n{said}{END}" in encoder({"prompt": said, "completion": "a"}).text


def test_lists_of_a_file_are_messages_and_objects_are_refused() -> None:
    encoder = encoder_for("chatml")
    prompt, completion = kept_text([user("вопрос")]), kept_text([answer("a")])
    assert runs(encoder, encoder({"prompt": prompt, "completion": completion})) == ["a" + END]
    for value, why in (
        ({"role": "assistant", "content": "a"}, "its completion is dict, neither a text nor a list"),
        ([{"name": "Ann"}], "message 2 has no role; it has name"),
    ):
        with pytest.raises(ValueError, match=why):
            encoder({"prompt": "a", "completion": kept_text(value)})


@pytest.mark.parametrize("system", [5, ["a"], kept_text(["a"])])
def test_a_system_that_is_no_text_is_refused(system: Any) -> None:
    with pytest.raises(ValueError, match=r"its system is (int|list), not a text"):
        encoder_for("chatml")({"messages": [user("a"), answer("b")], "system": system})


def test_roles_may_be_named_as_the_rows_name_them() -> None:
    row = {"conversations": [{"from": "human", "value": "eins"}, {"from": "gpt", "value": "One."}]}
    for role in ("human", "user"):
        encoder = encoder_for("chatml", loss="roles", roles=[role])
        assert runs(encoder, encoder(row)) == ["eins" + END]
    encoder = encoder_for("chatml", loss="roles", roles=["ai"], role_names={"ai": "assistant"})
    assert runs(encoder, encoder(row)) == ["One." + END]


@pytest.mark.parametrize(
    "pair",
    [
        *(("human", "ai"), ("user", "bot"), ("prompter", "assistant"), ("Human", "AI"), ("USER", "CHATBOT")),
        *(("user", "model"), ("human", "bing"), ("human ", "Assistant")),
    ],
)
def test_names_of_roles_in_published_data_are_understood(pair: tuple[str, str]) -> None:
    asked, answered = pair
    encoder = encoder_for("chatml")
    turns = [{"from": asked, "value": "вопрос"}, {"from": answered, "value": "One."}]
    chat = encoder({"conversations": [*turns, user("ещё"), answer("Two.")]})
    assert runs(encoder, chat) == ["One." + END, "Two." + END] and chat.text.count("<|im_start|>user") == 2


@pytest.mark.parametrize("role", ["tool_call", "function-call"])
def test_a_call_may_be_a_message_of_its_own(role: str) -> None:
    called = {"name": "weather", "arguments": {"city": "Zürich"}}
    result = {"role": "tool_response", "content": "ע"}
    messages = [user("погода?"), {"role": role, "content": json.dumps(called)}, result]
    encoder = encoder_for("qwen2_5")
    chat = encoder({"messages": [*messages, answer("Rain.")], "tools": TOOLS})
    assert runs(encoder, chat) == [TEMPLATES["qwen2_5"]["call"] + END, "Rain." + END]


def test_a_role_that_nothing_is_known_of_is_refused_unless_the_recipe_names_it() -> None:
    row = {"messages": [user("вопрос"), {"role": "agent", "content": "Один."}, user("ещё"), answer("Two.")]}
    why = r"of the role agent, which .*role_names=\{\"agent\": assistant\} says whose .* \{\"agent\": \"agent\"\} lets"
    for options in ({}, {"loss": "last"}, {"loss": "roles", "roles": ["assistant"]}):
        with pytest.raises(ValueError, match=why):
            encoder_for("chatml", **options)(row)
    mapped = encoder_for("chatml", role_names={"agent": "assistant"})
    assert runs(mapped, mapped(row)) == ["Один." + END, "Two." + END]
    for options in ({"role_names": {"agent": "agent"}}, {"loss": "roles", "roles": ["assistant", "agent"]}):
        encoder = encoder_for("chatml", **options)
        assert ("Один." + END in runs(encoder, encoder(row))) == ("roles" in options)
    assert "agent\nОдин." in encoder_for("chatml", loss="all")(row).text
    unlearnt = [{**message, "train": False} if message["role"] == "agent" else message for message in row["messages"]]
    encoder = encoder_for("chatml")
    assert runs(encoder, encoder({"messages": unlearnt})) == ["Two." + END]


def test_a_role_that_the_template_names_is_known() -> None:
    encoder = encoder_for("chatml")
    template = encoder.template.tokenizer.chat_template
    encoder.template.tokenizer.chat_template = "{% set quoted = 'critic' %}" + template
    chat = encoder({"messages": [user("a"), answer("One."), {"role": "critic", "content": "b"}, answer("Two.")]})
    assert runs(encoder, chat) == ["One." + END, "Two." + END]


def test_an_option_of_documents_is_refused_beside_conversations() -> None:
    from trireme.trainer.data.chat.chat_config import ChatConfig

    source = {"_target_": "trireme.trainer.data.row_files.RowFiles", "paths": ["a.jsonl"]}
    for overflow, fix in (("drop", "set chat.too_long=drop"), ("split", "set chat.too_long=cut, drop or refuse")):
        with pytest.raises(ValueError, match=rf"overflow={overflow} has no effect beside chat .*{fix}"):
            DataConfig(source=source, chat=ChatConfig(), packing="bins", overflow=overflow)  # type: ignore[arg-type]
