"""Tests of where an assistant's turn begins and ends in a rendered chat, with unusual chat templates. Templates that
raise errors or have misplaced generation blocks are refused.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
from helpers.chats import CALL, answer, runs, small_tokenizer, user
from trireme.trainer.data.chat.chat_config import ChatConfig
from trireme.trainer.data.chat.chat_encoder import ChatEncoder
from trireme.trainer.data.chat.chat_tokenizer import add_control_tokens, chat_vocabulary, prepared_tokenizer, stop_token

END = "<|im_end|>"
FOUR = [user("вопрос"), answer("One."), user("ещё"), answer("Two.")]
NOTE = "a turn that is learnt does not end with a token that ends it, while another one does"
HEADER = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
PROMPT = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
CHATML = HEADER + "{{ m.content + '<|im_end|>\n' }}{% endfor %}" + PROMPT


def encoder_of(template: str, eos: str = END, **options: Any) -> ChatEncoder:
    tokenizer = copy.deepcopy(small_tokenizer())
    add_control_tokens(tokenizer, ["<|im_start|>", END, "</s>"])
    tokenizer.eos_token, tokenizer.split_special_tokens, tokenizer.chat_template = eos, False, template
    return ChatEncoder(tokenizer, ChatConfig(**options))


def user_header(behind: str, call: str = "") -> str:
    """A template that writes the header of the next user message in its branch for the assistant."""
    return (
        "USER: {% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% else %}"
        " ASSISTANT: {{ m.content or '' }}"
        + call
        + behind
        + "{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )


LATER = "{% if loop.last %}{{ eos_token }}{% else %}{{ '\n\nUSER: ' }}{% endif %}"
CALLS = "{% for c in m.tool_calls or [] %}{{ '<call>' + c.function.name + '</call>' }}{% endfor %}"


@pytest.mark.parametrize(
    ("behind", "wanted", "stops"),
    [
        (LATER, [" One.", " Two.</s>"], 1),
        ("{{ '\n\nUSER: ' }}", [" One.", " Two."], 0),
        ("{{ '\n\nUSER: ' }}{% if loop.last %}{{ eos_token }}{% endif %}", [" One.", " Two."], 0),
        ("{{ eos_token }}{% if not loop.last %}{{ '\n\nUSER: ' }}{% endif %}", [" One.</s>", " Two.</s>"], 2),
    ],
)
def test_the_header_of_the_next_message_is_not_learnt(behind: str, wanted: list[str], stops: int) -> None:
    encoder = encoder_of(user_header(behind), "</s>")
    chat = encoder({"messages": FOUR})
    assert runs(encoder, chat) == wanted and len(chat.stops) == stops
    assert chat.notes == ((NOTE,) if stops == 1 else ())


def test_a_header_with_a_control_token_in_it_is_not_learnt() -> None:
    begin, header = "USER<|im_start|>", "{{ '\n\nUSER<|im_start|>' }}"
    encoder = encoder_of(user_header(header).replace("USER: ", begin, 1), "</s>")
    assert runs(encoder, encoder({"messages": FOUR})) == [" One.", " Two."]


def test_a_call_is_learnt_with_what_closes_it() -> None:
    encoder = encoder_of(user_header(LATER, CALLS), "</s>")
    called = [user("вопрос"), answer("", tool_calls=[CALL]), user("ещё"), answer("Two.")]
    assert runs(encoder, encoder({"messages": called})) == [" <call>weather</call>", " Two.</s>"]
    marked = LATER.replace("USER: '", "USER: ' + ('!' if m.tool_calls else '')")
    encoder = encoder_of(user_header(marked, CALLS), "</s>")
    with pytest.raises(ValueError, match=r"the end of message 2 cannot be found, since the template writes .*USER: !"):
        encoder({"messages": called})


IN_FRONT = "{% if not loop.first %}{{ '<|im_end|>\n' }}{% endif %}"
BY_NUMBER = "{% for i in range(messages | length) %}{% set m = messages[i] %}"


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("{{ '<|im_start|>' + m", IN_FRONT + "{{ '<|im_start|>' + m").replace(
            "m.content + '<|im_end|>\n' }}{% endfor %}", "m.content }}{% endfor %}{{ '<|im_end|>\n' }}"
        ),
        CHATML.replace("{% for m in messages %}", BY_NUMBER).replace(
            "m.content + ", "m.content }}{% set after = messages[i + 1] %}{{ "
        ),
    ],
    ids=["in front of the next message", "behind a look ahead"],
)
@pytest.mark.parametrize("eos", [END, "</s>"])
def test_a_stop_token_has_a_label_wherever_the_template_writes_it(template: str, eos: str) -> None:
    encoder = encoder_of(template, eos)
    chat = encoder({"messages": FOUR})
    assert runs(encoder, chat) == ["One." + END, "Two." + END] and len(chat.stops) == 2 and not chat.notes
    tokenizer = encoder.encoder.tokenizer
    assert stop_token(tokenizer, ChatConfig()) == tokenizer.convert_tokens_to_ids(END)
    both = encoder_of(template, eos, loss="roles", roles=["user"])
    assert runs(both, both({"messages": FOUR})) == ["вопрос" + END, "ещё" + END]


def test_a_header_that_begins_with_a_control_token_is_no_stop() -> None:
    template = HEADER + "{{ m.content + '\n' }}{% endfor %}{{ '<|im_start|>assistant\n' }}"
    encoder = encoder_of(template, "</s>")
    assert runs(encoder, encoder({"messages": FOUR})) == ["One.", "Two."]
    named = encoder_of(template, "</s>", stop_tokens=["<|im_start|>"])
    assert [each.split("\n")[0] for each in runs(named, named({"messages": FOUR}))] == ["One.", "Two."]
    assert len(named({"messages": FOUR}).stops) == 2


GENERATION = CHATML.replace(
    "{{ m.content + '<|im_end|>\n' }}",
    "{% if m.role == 'assistant' %}{%+ generation %}{{ m.content }}{% endgeneration %}{{ ' (end)' }}"
    "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}",
)


@pytest.mark.parametrize("tag", ["{%+ generation %}", "{% generation %}", "{%- generation -%}", "{%generation%}"])
def test_blocks_of_generation_are_found_however_they_are_written(tag: str) -> None:
    encoder = encoder_of(GENERATION.replace("{%+ generation %}", tag))
    assert runs(encoder, encoder({"messages": FOUR})) == ["One.", END, "Two.", END]


def test_a_block_behind_all_messages_is_of_the_last_answer() -> None:
    """As in a template that ends a conversation by ``eos_token``, where the assistant has the last word."""
    encoder = encoder_of(GENERATION + "{% generation %}{{ '</s>' }}{% endgeneration %}")
    assert runs(encoder, encoder({"messages": FOUR})) == ["One.", END, "Two.", END, "</s>"]
    with pytest.raises(ValueError, match="a block for what the model writes at no message"):
        encoder({"messages": FOUR[:3]})
    with pytest.raises(ValueError, match="at no message"):
        encoder_of("{% generation %}x{% endgeneration %}" + GENERATION)({"messages": FOUR})


@pytest.mark.parametrize("comment", ["{# {% generation %} #}", "{% raw %}{% generation %}{% endraw %}"])
def test_a_comment_is_no_block(comment: str) -> None:
    encoder = encoder_of(comment + CHATML)
    assert runs(encoder, encoder({"messages": FOUR})) == ["One." + END, "Two." + END]


def test_a_block_at_a_message_of_another_role_is_refused() -> None:
    template = CHATML.replace("{{ m.content +", "{% generation %}{{ m.content }}{% endgeneration %}{{")
    with pytest.raises(ValueError, match=r"block for what the model writes at message 1 \(user\)"):
        encoder_of(template)({"messages": FOUR})


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("{{ 1 // 0 }}", "integer division"),
        ("{{ 5 % 0 }}", "modulo"),
        ("{% for i in range(10**7) %}{% endfor %}", "Range too big"),
        ("{{ 'x' * (2**63) }}", "index-sized"),
        ("{{ 10.0**400 }}", "out of range"),
        ("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "recursion"),
        ("{{ nofunction() }}", "undefined"),
    ],
)
def test_any_error_of_a_template_becomes_a_reason(code: str, why: str) -> None:
    with pytest.raises(ValueError, match=f"the template refuses it: .*{why}"):
        encoder_of(CHATML + code)({"messages": FOUR})


@pytest.mark.parametrize(
    "written",
    [
        "{{ 'turn {}\n{}'.format(m.role, m.content) }}",
        "{{ 'turn {a}\n{b[content]}'.format(a=m.role, b=m) }}",
        "{{ 'turn %s\n%s' | format(m.role, m.content) }}",
        "{{ 'turn %(role)s\n%(content)s' % m }}",
        "{{ 'turn ' + m.role + '\n' + m.content | e }}",
        "{{ 'turn ' + m.role + '\n' + m.content | title }}",
        "{{ 'turn ' + m.role + '\n' + m.content | wordwrap(9) }}",
    ],
)
def test_texts_are_followed_through_patterns_and_filters(written: str) -> None:
    prompt = PROMPT.replace("<|im_start|>", "turn ")
    encoder = encoder_of("{% for m in messages %}" + written + "{{ '<|im_end|>\n' }}{% endfor %}" + prompt)
    assert runs(encoder, encoder({"messages": FOUR})) == ["One." + END, "Two." + END]


@pytest.mark.parametrize("copied", ["'Of {}: '.format(said)", "'Of %s: ' | format(said)", "'Of ' + said | title"])
def test_a_copy_of_a_question_before_an_answer_is_not_learnt(copied: str) -> None:
    said = "{% set said = messages[loop.index0 - 1].content %}"
    said += "{% if m.role == 'assistant' %}{{ " + copied + " }}{% endif %}"
    encoder = encoder_of(CHATML.replace("{{ m.content", said + "{{ m.content"))
    with pytest.raises(ValueError, match=r"does not begin as an answer|into the turn of message 2"):
        encoder({"messages": FOUR})


def test_a_message_that_is_a_pattern_is_refused() -> None:
    encoder = encoder_of(CHATML.replace("m.content", "m.content.format(messages[0].content)"))
    with pytest.raises(ValueError, match="the text of a message is taken as a pattern"):
        encoder({"messages": [user("a"), answer("b {}")]})


def test_the_template_that_is_trained_becomes_the_default() -> None:
    several = {"default": CHATML, "tool_use": CHATML + "{# tools #}", "rag": CHATML + "{# rag #}"}
    tokenizer = prepared_tokenizer(small_tokenizer(), ChatConfig(template=several, template_name="rag"), trained=True)
    assert tokenizer.get_chat_template() == several["rag"] == tokenizer.get_chat_template(tools=[{}])
    assert set(tokenizer.chat_template) == set(several)
    tokenizer = prepared_tokenizer(small_tokenizer(), ChatConfig(template=several), trained=True)
    assert tokenizer.chat_template == several
    assert chat_vocabulary(tokenizer, ChatConfig()).stop == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert chat_vocabulary(tokenizer, None).stop is None
