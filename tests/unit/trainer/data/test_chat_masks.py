"""Tests that in chats only what the assistant writes has labels (texts, thinking, tool calls, ends of turns), with the
templates of many published models. Tokens and masks of answers are compared with those of transformers.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from helpers.chats import ANSWERS, CALL, OTHERS, TEMPLATES, TOOLS, answer, encoder_for, runs, tokenizer_for, user
from trireme.models.loss import IGNORE

NAMES = sorted(TEMPLATES)
DATED = {name for name in NAMES if "strftime_now" in TEMPLATES[name]["template"]}


def written(form: dict[str, Any], text: str, last: bool) -> str:
    """The text that the model has to write for an answer, by the description of a template in the test corpus."""
    if form.get("json"):
        text = json.dumps({"say": text}, ensure_ascii=False)
    if form.get("lines"):
        text = "\n".join(text.splitlines()).replace("\t", " ")
    strip = form.get("strip")
    text = text.strip() if strip is True else text.lstrip("\n") if strip else text
    stop = form.get("last", form["stop"]) if last else form["stop"]
    after = form.get("after", "") if stop else ""
    text = form.get("before", "") + text + after + stop + form.get("behind", "")
    return text if stop or text.strip() else ""


def expected(form: dict[str, Any], answers: tuple[str, ...]) -> list[str]:
    found = [written(form, text, number == len(answers) - 1) for number, text in enumerate(answers)]
    return [text for text in found if text]


@pytest.mark.parametrize("name", NAMES)
def test_answers_and_their_stops_are_learnt_and_nothing_else(name: str) -> None:
    encoder = encoder_for(name)
    messages = [each for number, text in enumerate(ANSWERS) for each in (user(f"  вопрос {number}?\n"), answer(text))]
    chat = encoder({"messages": messages})
    assert runs(encoder, chat) == expected(TEMPLATES[name], ANSWERS)
    stops = [text for text in (TEMPLATES[name]["stop"],) * (len(ANSWERS) - 1) if text]
    assert len(chat.stops) == len(stops) + bool(TEMPLATES[name].get("last", TEMPLATES[name]["stop"]))
    kept = chat.labels != IGNORE
    assert (chat.labels[kept] == chat.input_ids[kept]).all()


@pytest.mark.parametrize("name", sorted(set(NAMES) - DATED))
def test_tokens_are_those_of_transformers(name: str) -> None:
    encoder, tokenizer = encoder_for(name), tokenizer_for(name)
    messages = [user("вопрос"), answer(ANSWERS[0]), user("ещё"), answer(ANSWERS[1])]
    wanted = tokenizer.apply_chat_template(messages, return_dict=False, **TEMPLATES[name].get("args", {}))
    assert encoder({"messages": messages}).input_ids.tolist() == wanted


@pytest.mark.parametrize("name", NAMES)
def test_the_system_is_read_only(name: str) -> None:
    encoder, form = encoder_for(name), TEMPLATES[name]
    row = {"messages": [{"role": "system", "content": "σύστημα"}, user("вопрос"), answer(ANSWERS[1])]}
    if form.get("system") is False:
        with pytest.raises(ValueError, match=r"the template (refuses it|leaves out message 1)"):
            encoder(row)
        return
    chat = encoder(row)
    assert "σύστημα" in chat.text
    assert runs(encoder, chat) == expected(form, (ANSWERS[1],))


@pytest.mark.parametrize("name", NAMES)
def test_calls_of_tools_are_learnt_and_their_results_are_not(name: str) -> None:
    form = TEMPLATES[name]
    encoder = encoder_for(name, unseen="allow" if form.get("hides_tools") else "refuse")
    result = {"role": "tool", "name": "weather", "tool_call_id": "abc123456", "content": "גשם"}
    row = {"messages": [user("погода?"), answer("", tool_calls=[CALL]), result, answer("Rain. 漢")], "tools": TOOLS}
    if "call" not in form:
        with pytest.raises(ValueError, match=r"the template (refuses it|leaves out|writes)"):
            encoder(row)
        return
    chat = encoder(row)
    stop = "" if form.get("call_ends") else form["stop"]
    call = form["call"] + form.get("after_call", "") + stop
    assert runs(encoder, chat) == [call, written(form, "Rain. 漢", True)]
    assert "גשם" in chat.text


@pytest.mark.parametrize("name", NAMES)
def test_thinking_is_learnt_where_the_template_shows_it(name: str) -> None:
    encoder, form = encoder_for(name), TEMPLATES[name]
    thinking = {"reasoning_content": "REASON"}
    chat = encoder({"messages": [user("а"), answer("Yes.", **thinking), user("б"), answer("No. 漢", **thinking)]})
    last = written(form, "No. 漢", True)
    assert runs(encoder, chat) == [written(form, "Yes.", False), form.get("thinking", "") + last]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "content", ["<think>\nhm 漢\n</think>\n\nHi 字!", "<think>hm</think>Hi 字!", "a</think>Hi 字!"]
)
def test_thinking_inside_contents_has_exact_labels(name: str, content: str) -> None:
    """A template may drop the thinking or keep it; exactly the assistant's text that it writes has labels."""
    encoder = encoder_for(name)
    try:
        chat = encoder({"messages": [user("вопрос"), answer(content), user("ещё"), answer(content)]})
    except ValueError as error:
        assert "the token" in str(error) or "the template" in str(error)
        return
    found = "".join(runs(encoder, chat))
    assert found.count("字") == chat.text.count("字") == 2 and found.count("漢") == chat.text.count("漢")
    assert not set(found) & set(OTHERS)


@pytest.mark.parametrize("name", [name for name in NAMES if "generation %}" in TEMPLATES[name]["template"]])
def test_masks_of_generation_blocks_are_those_of_transformers(name: str) -> None:
    encoder, tokenizer = encoder_for(name), tokenizer_for(name)
    messages = [user("вопрос"), answer("One 漢 two."), user("ещё"), answer("Three.")]
    args = TEMPLATES[name].get("args", {})
    found = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True, **args)
    chat = encoder({"messages": messages})
    if name in DATED:  # the texts differ in the date before the first answer
        both = [np.array(mask, bool)[-60:] for mask in (found["assistant_masks"], chat.labels != IGNORE)]
        assert (both[0] == both[1]).all()
        return
    theirs = np.array(found["assistant_masks"], bool)
    theirs[list(chat.stops)] = True  # the token that ends a turn is learnt, also where the block leaves it out
    assert ((chat.labels != IGNORE) == theirs).all()
