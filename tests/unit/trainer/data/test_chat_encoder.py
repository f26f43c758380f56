"""Tests of turning conversations into tokens and labels: which tokens get labels, row formats, templates, tools, and
conversations and recipes that are refused.
"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any, Literal

import pytest
from helpers.chats import CALL, TEMPLATES, TOOLS, answer, encoder_for, runs, small_tokenizer, tokenizer_for, user
from trireme.errors import UserError
from trireme.trainer.data.chat.chat_config import ChatConfig
from trireme.trainer.data.chat.chat_encoder import ChatEncoder
from trireme.trainer.data.chat.chat_tokenizer import prepared_tokenizer
from trireme.trainer.data.chat.check_chat import check_chat
from trireme.trainer.data.chat.conversation import conversation_of
from trireme.trainer.data.chat.named_templates import named_template, template_names
from trireme.trainer.data.tokenizer import TokenizerConfig

END = "<|im_end|>"
CHATML = named_template("chatml").text
FOUR = [user("eins"), answer("One."), user("zwei"), answer("Two.")]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"loss": "assistant"}, ["One." + END, "Two." + END]),
        ({"loss": "last"}, ["Two." + END]),
        ({"loss": "roles", "roles": ["user"]}, ["eins" + END, "zwei" + END]),
        ({"loss": "roles", "roles": ["user", "assistant"]}, ["eins" + END, "One." + END, "zwei" + END, "Two." + END]),
    ],
)
def test_the_option_loss_chooses_the_tokens_with_labels(options: dict[str, Any], wanted: list[str]) -> None:
    encoder = encoder_for("chatml", **options)
    assert runs(encoder, encoder({"messages": FOUR})) == wanted


def test_all_learns_every_token() -> None:
    encoder = encoder_for("chatml", loss="all")
    chat = encoder({"messages": FOUR})
    assert (chat.labels == chat.input_ids).all() and len(chat.stops) == 4


@pytest.mark.parametrize("key", [{"train": False}, {"weight": 0}])
def test_a_message_may_be_left_out(key: dict[str, Any]) -> None:
    encoder = encoder_for("chatml")
    chat = encoder({"messages": [user("eins"), answer("One.", **key), user("zwei"), answer("Two.", train=True)]})
    assert runs(encoder, chat) == ["Two." + END] and "train" not in chat.text


@pytest.mark.parametrize("options", [{}, {"loss": "roles", "roles": ["assistant"]}])
def test_a_message_of_another_role_may_be_learnt(options: dict[str, Any]) -> None:
    encoder = encoder_for("chatml", **options)
    chat = encoder(
        {"messages": [{**user("eins"), "train": True}, answer("One."), {**user("zwei"), "weight": 1}, answer("Two.")]}
    )
    assert runs(encoder, chat) == ["eins" + END, "One." + END, "Two." + END]


def test_loss_completions_labels_completions_only() -> None:
    encoder = encoder_for("chatml", loss="completions")
    both = {"prompt": FOUR[:3], "completion": [answer("Two."), user("drei"), answer("Three.")]}
    assert runs(encoder, encoder(both)) == ["Two." + END, "Three." + END]
    assert runs(encoder, encoder({"prompt": "eins", "completion": "One."})) == ["One." + END]
    with pytest.raises(ValueError, match="it has no column completion"):
        encoder({"messages": FOUR})


def test_forms_of_rows_give_the_same_tokens() -> None:
    encoder = encoder_for("chatml")
    wanted = encoder({"messages": FOUR}).input_ids.tolist()
    sharegpt = [{"from": ("human", "gpt")[number % 2], "value": each["content"]} for number, each in enumerate(FOUR)]
    for row in (
        {"conversations": sharegpt},
        {"messages": sharegpt},
        {"messages": json.dumps(FOUR)},
        {"messages": [{**each, "tool_calls": None, "name": None} for each in FOUR]},
        {"prompt": FOUR[:3], "completion": "Two."},
    ):
        assert encoder(row).input_ids.tolist() == wanted


def test_calls_in_sharegpt_and_as_text() -> None:
    row = {
        "conversations": [
            {"from": "human", "value": "погода?"},
            {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Zürich"}})},
            {"from": "observation", "value": "גשם"},
            {"from": "gpt", "value": "Rain."},
        ],
        "tools": json.dumps(TOOLS),
    }
    encoder = encoder_for("qwen2_5")
    assert runs(encoder, encoder(row)) == [TEMPLATES["qwen2_5"]["call"] + END, "Rain." + END]
    called = conversation_of(row, arguments_as_text=True).messages[1]["tool_calls"][0]["function"]
    assert called["arguments"] == '{"city": "Zürich"}'
    with pytest.raises(ValueError, match=r"data\.chat\.tool_arguments=text"):
        encoder_for("deepseek_v3", tool_arguments="object", unseen="allow")(row)


def test_a_system_message_for_all_conversations() -> None:
    encoder = encoder_for("chatml", system="Be brief.")
    assert encoder({"messages": FOUR}).text.startswith("<|im_start|>system\nBe brief.")
    assert "Be long." in encoder({"messages": FOUR, "system": "Be long."}).text
    assert "Be brief." not in encoder({"messages": [{"role": "developer", "content": "d"}, *FOUR]}).text


def test_tools_of_functions_and_templates_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tools_of_mine.py").write_text(
        "def weather(city: str, days: int = 1):\n    '''The weather.\n\n    Args:\n        city: its name\n"
        "        days: how many\n    '''\n\ndef untold(city): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "tools.jinja"
    file.write_text("{{ tools | tojson }}" + CHATML)
    chat = ChatConfig(template={"default": CHATML, "tool_use": str(file)}, tools=["tools_of_mine.weather"])
    encoder = ChatEncoder(prepared_tokenizer(small_tokenizer(), chat), chat)
    shown = json.loads(encoder({"messages": FOUR}).text.partition("<|im_start|>")[0])
    assert shown[0]["function"]["parameters"]["properties"]["city"] == {"type": "string", "description": "its name"}
    plain = ChatConfig(template=chat.template, template_name="default", tools=chat.tools, unseen="allow")
    assert ChatEncoder(prepared_tokenizer(small_tokenizer(), plain), plain)({"messages": FOUR}).text.startswith("<|im_")
    for tool, why in (("tools_of_mine.untold", "makes no JSON schema"), ("tools_of_mine.none", "cannot be imported")):
        with pytest.raises(UserError, match=why):
            ChatEncoder(tokenizer_for("chatml"), ChatConfig(tools=[tool]))


def test_documents_and_arguments_of_templates() -> None:
    encoder = encoder_for("granite3")
    documents = [{"title": "τίτλος", "text": "κείμενο"}]
    chat = encoder({"messages": FOUR, "documents": documents})
    assert "κείμενο" in chat.text and runs(encoder, chat) == ["One.<|end_of_text|>", "Two.<|end_of_text|>"]
    with pytest.raises(ValueError, match="leaves out the documents"):
        encoder_for("chatml")({"messages": FOUR, "documents": documents})
    thinking = encoder_for("qwen3", learn_empty_thinking=True)
    with_row = thinking({"messages": FOUR[:2], "template_args": {"enable_thinking": False}})
    assert runs(thinking, with_row) == ["One." + END]
    empty = "<think>\n\n</think>\n\n"
    assert runs(thinking, thinking({"messages": FOUR[:2]})) == [empty + "One." + END]


def test_contents_that_are_lists_of_parts() -> None:
    parts = [{"type": "text", "text": "eins"}, {"type": "text", "text": " zwei"}]
    for name in ("chatml", "llama4"):
        encoder = encoder_for(name)
        one, other = ({"role": "user", "content": parts}, user("eins zwei"))
        assert encoder({"messages": [one, FOUR[1]]}).text == encoder({"messages": [other, FOUR[1]]}).text
        with pytest.raises(ValueError, match="message 1 holds image, and only texts are read"):
            encoder({"messages": [{"role": "user", "content": [{"type": "image"}]}, FOUR[1]]})


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"messages": []}, "it has no messages"),
        ({"prompt": "a"}, "neither messages nor a prompt with its completion"),
        ({"messages": [{"content": "a"}]}, "message 1 has no role; it has content"),
        ({"messages": "[{"}, "its messages are a text that is not valid JSON"),
        ({"messages": ["a"]}, "message 1 is str"),
        ({"messages": [user("a"), answer("b", train="no")]}, "train='no', which is neither true nor false"),
        ({"messages": [user("a"), {"role": "assistant", "content": 3}]}, "message 2 has a content that is int"),
        (
            {"messages": [user("a"), answer("b<|im_end|>")]},
            r"a message holds <\|im_end\|> where the",
        ),
        ({"messages": FOUR, "tools": TOOLS}, "the template leaves out the tools"),
        (
            {"messages": [user("a"), {"role": "assistant", "tool_calls": [CALL]}]},
            "refuses it.*calls of tools and no content",
        ),
    ],
)
def test_rows_that_are_refused(row: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        encoder_for("chatml")(row)


def test_a_token_that_joins_an_answer_with_what_is_read_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = {word: number for number, word in enumerate(["Q", ":", "A", "A:", "b", "c", " ", "bc", ":b", "<e>"])}
    merges = [("A", ":"), ("b", "c"), (":", "b")]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(words, merges)), eos_token="<e>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ ('A:' if m.role == 'assistant' else 'Q:') + m.content + eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}A:{% endif %}"
    )
    encoder = ChatEncoder(tokenizer, ChatConfig())
    chat = encoder({"messages": [user("c"), answer("bc")]})
    assert tokenizer.convert_ids_to_tokens(chat.labels[chat.labels != -100]) == ["bc", "<e>"]
    tokenizer.chat_template = tokenizer.chat_template.replace("A:", "Q:")
    encoder = ChatEncoder(tokenizer, ChatConfig())
    with pytest.raises(ValueError, match="the token ':b' joins what is learnt with what is not"):
        encoder({"messages": [user("c"), answer("b")]})


def test_a_content_that_is_dropped_beside_a_call_is_refused() -> None:
    row = {
        "messages": [user("погода?"), answer("I look.", tool_calls=[CALL]), user("и?"), answer("Rain.")],
        "tools": TOOLS,
    }
    with pytest.raises(ValueError, match=r"leaves out content of message 2 \(assistant\)"):
        encoder_for("llama3_1")(row)
    encoder = encoder_for("llama3_1", unseen="allow")
    chat = encoder(row)
    assert chat.notes == ("the template leaves out content of message 2 (assistant)",)
    assert runs(encoder, chat)[0] == TEMPLATES["llama3_1"]["call"] + "<|eot_id|>"


def test_control_tokens_are_added_once_and_end_texts(caplog: pytest.LogCaptureFixture) -> None:
    base = small_tokenizer()
    with caplog.at_level(logging.WARNING, "trireme.data"):
        tokenizer = prepared_tokenizer(base, ChatConfig())
    assert "ChatML is taken" in caplog.text
    assert len(tokenizer) == len(base) + 2 and tokenizer.eos_token == END and base.eos_token != END
    again = prepared_tokenizer(tokenizer, ChatConfig(control_tokens=["<|im_start|>", "<new>"]))
    assert len(again) == len(tokenizer) + 1 and again.encode("a<new>", add_special_tokens=False)[-1] == len(again) - 1
    named = prepared_tokenizer(base, ChatConfig(template="chatml"))
    assert named.chat_template == CHATML and len(named) == len(tokenizer)
    written = prepared_tokenizer(base, ChatConfig(template="{{ messages[0].content }}"))
    assert len(written) == len(base) and written.eos_token == base.eos_token


@pytest.mark.parametrize("name", template_names())
def test_a_named_template_brings_its_tokens(name: str) -> None:
    base, named = small_tokenizer(), named_template(name)
    chat = ChatConfig(template=name)
    encoder = ChatEncoder(prepared_tokenizer(base, chat), chat)
    tokenizer = encoder.template.tokenizer
    assert len(tokenizer) == len(base) + len(named.tokens) and tokenizer.bos_token == base.bos_token
    stop = encoder({"messages": [user("q"), answer("a"), user("q"), answer("a")]}).stops
    ends = named.eos if TEMPLATES[name]["stop"] == named.eos else TEMPLATES[name]["stop"]
    assert len(stop) == 2 and (tokenizer.eos_token == ends or (named.eos and tokenizer.eos_token == base.eos_token))
    assert all(len(tokenizer.encode(token, add_special_tokens=False)) == 1 for token in named.tokens)
    bare = copy.deepcopy(base)
    bare.bos_token = bare.eos_token = None
    own = prepared_tokenizer(bare, chat)
    assert own.bos_token == named.bos and own.eos_token == (ends if ends in named.tokens else named.eos)


def test_named_templates_are_listed_with_their_tokens() -> None:
    page = (Path(__file__).parents[4] / "docs" / "chat.md").read_text()
    for name in template_names():
        named = named_template(name)
        (row,) = (line.replace("\\|", "|") for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(f"`{token}`" in row for token in (*named.tokens, named.bos, named.eos) if token)
        assert ("bos_token" in named.text, "eos_token" in named.text) == (bool(named.bos), bool(named.eos))
    problems, _ = check_chat(ChatConfig(template="lama3"), TokenizerConfig(), None, 64)
    assert ", ".join(template_names()) in problems[0].fix


@pytest.mark.parametrize(
    ("options", "field", "why"),
    [
        ({"template": "{% for %}"}, "data.chat.template", "is not a Jinja template"),
        ({"template": "missing.jinja"}, "data.chat.template", "cannot be read: No such file"),
        ({"template_name": "rag", "template": {"default": CHATML}}, "data.chat.template_name", "no such template"),
        ({"stop_tokens": ["<none>"], "template": CHATML}, "data.chat.stop_tokens", "is not a token of the tokenizer"),
        ({"template": TEMPLATES["alpaca_endless"]["template"]}, "data.chat", "never learns the token that ends a turn"),
        ({"tools": ["no.such"], "template": CHATML}, "data.chat.tools", "cannot be imported"),
    ],
)
def test_recipes_that_are_refused_without_data(options: dict[str, Any], field: str, why: str) -> None:
    problems, _ = check_chat(ChatConfig(**options), TokenizerConfig(), None, 64)
    assert [problem.field for problem in problems] == [field] and why in problems[0].why


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"loss": "roles"}, "roles=[] is wrong"),
        ({"roles": ["user"]}, "has no effect with loss=assistant"),
        ({"template": 3}, "is not a text"),
        ({"template": {}}, "write several as"),
        ({"tools": [3]}, "is not a tool"),
        ({"date": "today"}, "is not a day"),
    ],
)
def test_options_that_are_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("[", r"\[").replace("]", r"\]")):
        ChatConfig(**options)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_labels_cover_the_answer_with_normalising_tokenizers(kind: Literal["unigram", "bpe"]) -> None:
    """With normalising tokenizers too, labels cover the whole answer."""
    from trireme.trainer.data.tokenizer import train_tokenizer

    base = train_tokenizer(
        TokenizerConfig(kind=kind, vocab_size=400), lambda: ["How are you today, and what is it?"] * 30
    )
    for name in ("llama2", "chatml", "gemma", "vicuna", "zephyr"):
        encoder = encoder_for(name, base)
        chat = encoder({"messages": [user("what is it?"), answer("you are how"), user("and"), answer("it is")]})
        texts = [text.replace(TEMPLATES[name]["stop"], "").strip() for text in runs(encoder, chat)]
        assert texts == ["you are how", "it is"]
        assert len(chat.stops) == 2


def test_templates_write_the_date_of_the_recipe() -> None:
    encoder = encoder_for("llama3_1", date="2024-07-26")
    assert "Today Date: 26 Jul 2024" in encoder({"messages": FOUR}).text
