"""Tests of strings that record which chat message each of their characters comes from.

They behave like plain strings in a chat template, and every operation keeps the record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from trireme.trainer.data.chat.traced_template import Turn, traced_rendering
from trireme.trainer.data.chat.traced_text import PLAIN, Mark, Traced, formatted, joined, json_text

TEXTS = ["", "a", "  ab\tc\n\nab ", "<think>\nx\n</think>\n\nab", "\u2028ß\x0bé漢😀 ab", "aaaa", '{"a": "\\"b\n"}']
OPERATIONS: list[Callable[[str], Any]] = [
    lambda text: text,
    lambda text: text.strip(),
    lambda text: text.lstrip("\n a"),
    lambda text: text.rstrip("b "),
    lambda text: text.split(),
    lambda text: text.split(None, 1),
    lambda text: text.rsplit(None, 1),
    lambda text: text.split("ab"),
    lambda text: text.split("a", 1),
    lambda text: text.rsplit("a", 1),
    lambda text: text.split("</think>")[-1].lstrip("\n"),
    lambda text: text.splitlines(),
    lambda text: text.splitlines(True),
    lambda text: text.partition("a"),
    lambda text: text.rpartition("\n"),
    lambda text: text.removeprefix("a"),
    lambda text: text.removesuffix("b "),
    lambda text: text[1:],
    lambda text: text[:-1],
    lambda text: text[::-1],
    lambda text: text[-3:2:-1],
    lambda text: [text[place] for place in range(len(text))],
    lambda text: list(text),
    lambda text: ">" + text + "<",
    lambda text: text + text,
    lambda text: text * 2,
    lambda text: "%s|%s%%" % (text, text),  # noqa: UP031
    lambda text: "%s" % text,  # noqa: UP031
    lambda text: str(text),
]


def each_marked(text: str) -> Traced:
    """A text in which each character is marked with its place."""
    return Traced(text, [(1, Mark(place)) for place in range(len(text))])


def marks(text: Traced) -> Iterator[Mark]:
    for size, mark in text.spans:
        yield from [mark] * size


def flat(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("text", TEXTS)
def test_methods_give_what_strings_give_and_keep_origins(operation: Callable[[str], Any], text: str) -> None:
    wanted, found = flat(operation(text)), flat(operation(each_marked(text)))
    assert found == wanted
    for part in found:
        if not isinstance(part, Traced):  # a tuple of values, which Python formats itself
            continue
        assert sum(size for size, _ in part.spans) == len(part)
        for sign, mark in zip(str(part), marks(part), strict=True):
            assert mark == PLAIN or text[mark.message or 0] == sign


@pytest.mark.parametrize("method", ["upper", "lower", "title", "capitalize", "swapcase", "casefold"])
@pytest.mark.parametrize("text", TEXTS)
def test_changed_letters_keep_their_places(method: str, text: str) -> None:
    found = getattr(each_marked(text), method)()
    assert found == getattr(text, method)() or method in ("title", "capitalize")
    places = [mark.message for mark in marks(found)]
    assert places == sorted(places, key=lambda place: place or 0) and None not in places


@pytest.mark.parametrize("text", TEXTS)
def test_replaced_characters_keep_their_message(text: str) -> None:
    marked = Traced(text, [(len(text), Mark(3))])
    for old, new in (("a", ""), ("a", "xyz"), ("\n", " "), ("", "-")):
        found = marked.replace(old, new)
        assert found == text.replace(old, new)
        assert not old or all(mark.message == 3 for mark in marks(found))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("options", [{}, {"indent": 2}, {"ensure_ascii": True}, {"separators": (",", ":")}])
def test_json_keeps_the_origin_of_its_texts(text: str, options: dict[str, Any]) -> None:
    value = {"b@": [each_marked(text), 3, None, True], "a": {"@@c": "plain @0@"}}
    plain = json.loads(json.dumps(value))
    found = json_text(value, **options)
    assert found == json.dumps(plain, **{"ensure_ascii": False, **options})
    assert {mark.message for mark in marks(joined([found]))} - {None} == set(range(len(text)))


def test_formats_and_joins() -> None:
    found = formatted("<%s>", each_marked("ab"))
    assert found == "<ab>" and [mark.message for mark in marks(joined([found]))] == [None, 0, 1, None]
    assert formatted("%d", 3) == "3" and formatted("%5s", "a") == "    a"
    assert [mark.message for mark in marks(Traced("-").join(["x", each_marked("ab")]))] == [None, None, 0, 1]


def test_text_in_a_loop_is_marked_with_its_message() -> None:
    messages = []
    for number, text in enumerate(("ab", "c")):
        turn = Turn(content=Traced(text, [(len(text), Mark(number, "content"))]), calls=[1, 2])
        turn.number = number
        messages.append(turn)
    template = (
        "^{% for one in messages %}({{ one.content }}{% for call in one.calls %}{{ call }}{% for other in messages %}"
        "{% if other.content == 'ab' %}!{% endif %}{% endfor %}{% endfor %}{% if loop.last %}${% endif %})"
        "{% if one.content == 'c' %}{% break %}{% endif %}{% endfor %}#{{ messages[0].content }}"
    )
    found = traced_rendering(template, {"messages": messages})
    assert found == "^(ab1!2!)(c1!2!$)#ab"
    turns = [mark.turn for mark in marks(found)]
    assert turns == [None, *[0] * 8, *[1] * 8, None, None, None]
