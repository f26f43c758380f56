"""Read preference data from rows of a data set, in the formats of TRL.

The answers may be texts or messages, with the prompt in its own column or at the beginning of both answers. The result
for each answer is a row with ``prompt`` and ``completion``, as for chats (``chat/conversation.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ....errors import Problem
from ..chat.conversation import ASSISTANT, read_side, with_input
from ..chat.roles import role_of

BESIDE = ("system", "tools", "functions", "documents", "template_args")
"""Columns of a chat that stand beside prompt and answers."""
Answer = dict[str, Any]
"""A row with ``prompt`` and ``completion``; the prompt is None where both answers are texts that begin with it."""


def pair_of(row: Mapping[str, Any]) -> tuple[Answer, Answer]:
    """The chosen and the rejected answer of a row.

    Raises:
        ValueError: it holds none; the message says why.
    """
    prompt, chosen, rejected = (read_side(row.get(name), name) for name in ("prompt", "chosen", "rejected"))
    prompt = with_input(prompt, row.get("input"))
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if _empty(side):
            raise ValueError(f"it has nothing in the column {name}")
    if isinstance(chosen, list) != isinstance(rejected, list):
        raise ValueError("one of its answers is a text, and the other a list of messages")
    if isinstance(chosen, list) and isinstance(rejected, list) and _holds_prompt(prompt, chosen, rejected):
        prompt, chosen, rejected = _split_messages(chosen, rejected)
    beside = {name: row[name] for name in BESIDE if row.get(name) is not None}
    return ({**beside, "prompt": prompt, "completion": side} for side in (chosen, rejected))  # type: ignore[return-value]


def judged_of(row: Mapping[str, Any]) -> tuple[Answer, bool]:
    """The answer of a row, and whether it is called good.

    Raises:
        ValueError: it holds none; the message says why.
    """
    prompt, completion = (read_side(row.get(name), name) for name in ("prompt", "completion"))
    prompt = with_input(prompt, row.get("input"))
    if not prompt:
        raise ValueError("it has no prompt")
    if _empty(completion):
        raise ValueError("it has nothing in the column completion")
    beside = {name: row[name] for name in BESIDE if row.get(name) is not None}
    return {**beside, "prompt": prompt, "completion": completion}, _truth(row.get("label"))


def judged_pair(row: Mapping[str, Any]) -> list[tuple[Answer, bool]]:
    """Both answers of a pair, as answers that are called good and bad.

    Raises:
        ValueError: the row holds no pair.
    """
    chosen, rejected = pair_of(row)
    if chosen["prompt"] is None:
        size = _common_text(chosen["completion"], rejected["completion"])
        if not size:
            raise ValueError("it has no prompt, and its answers do not begin alike")
        parts = [(side["completion"][:size], side["completion"][size:]) for side in (chosen, rejected)]
        chosen, rejected = ({**chosen, "prompt": prompt, "completion": rest} for prompt, rest in parts)
        if not (chosen["completion"] and rejected["completion"]):
            raise ValueError("one of its answers is the beginning of the other one")
    return [(chosen, True), (rejected, False)]


def answers_of(row: Mapping[str, Any], judged: bool) -> list[tuple[Answer, bool]]:
    """The answers of a row, and whether each is called good.

    Args:
        judged: whether rows may hold single answers; pairs become two.

    Raises:
        ValueError: it holds none.
    """
    if judged:
        pair = row.get("completion") is None and row.get("chosen") is not None
        return judged_pair(row) if pair else [judged_of(row)]
    chosen, rejected = pair_of(row)
    return [(chosen, True), (rejected, False)]


def refuse_form(answer: Answer, chat: bool) -> None:
    """Refuse texts where messages are needed, and messages where only texts are read.

    Args:
        chat: whether answers are conversations (``data.chat``).

    Raises:
        ValueError: the answer is of the other form.
    """
    prompt, completion = answer["prompt"], answer["completion"]
    if chat and prompt is None:
        raise ValueError("it has no prompt, and its answers are texts: set data.chat=null to learn them as they stand")
    if not chat and not (isinstance(prompt, str | None) and isinstance(completion, str)):
        raise ValueError("it holds messages, which need a template: choose data=preferences, or set data.chat={}")


def columns_problem(names: Sequence[str], key: str, judged: bool, every: Sequence[str] = ()) -> list[Problem]:
    """The problem of rows that hold no preferences.

    Args:
        names: columns that are there, by the names that the task uses.
        key: where their source stands in the recipe.
        judged: whether single answers serve too.
        every: all columns of the source, where they are known.
    """
    there = set(names)
    if {"chosen", "rejected"} <= there or (judged and {"prompt", "completion", "label"} <= there):
        return []
    if not judged:
        lacking = "rejected" if "chosen" in there else "chosen"
        why = f"gives no column {lacking}; columns there: {', '.join(every or names) or 'none'}"
        return [Problem(key, why, f"name the column that holds it: data.columns.{lacking}=COLUMN")]
    forms = "prompt, completion and label, or chosen and rejected, and perhaps prompt"
    why = f"gives none of the columns of preferences: {forms}" + (
        f"; columns there: {', '.join(every)}" if every else ""
    )
    return [Problem(key, why, "name the columns that hold them, such as data.columns.chosen=COLUMN")]


def say_the_same(one: Any, other: Any) -> bool:
    """Whether two answers are the same texts or messages, apart from space around them."""
    if isinstance(one, str) and isinstance(other, str):
        return one.strip() == other.strip()
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(say_the_same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(say_the_same(one[name], other[name]) for name in one)
    return one == other


def _empty(side: Any) -> bool:
    """Whether a cell holds no answer: nothing, or a text of spaces."""
    return not (side.strip() if isinstance(side, str) else side)


def _holds_prompt(prompt: Any, chosen: list[Any], rejected: list[Any]) -> bool:
    """Whether lists of messages begin with the prompt: where there is none beside them, or one that is a text while the
    first message of both is not the assistant's, as in many data sets."""
    if not prompt:
        return True
    return isinstance(prompt, str) and not any(_role(side[0]) == ASSISTANT for side in (chosen, rejected))


def _role(message: Any) -> Any:
    role = message.get("role", message.get("from")) if isinstance(message, Mapping) else None
    return role_of(role) if isinstance(role, str) else None


def _split_messages(chosen: list[Any], rejected: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """The messages with which both begin, and what follows in each."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    size = next((at for at, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    if not size:
        raise ValueError("it has no prompt, and its answers do not begin with the same message")
    if size in (len(chosen), len(rejected)):
        raise ValueError("one of its answers is the beginning of the other one")
    return chosen[:size], chosen[size:], rejected[size:]


def _common_text(one: str, other: str) -> int:
    """Characters with which two texts begin alike, without a space at the end."""
    pairs = enumerate(zip(one, other, strict=False))
    size = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
    return size - 1 if size and one[size - 1] == " " else size


def _truth(value: Any) -> bool:
    """A label as data sets write it.

    Raises:
        ValueError: it is neither true nor false.
    """
    text = str(value).strip().lower() if isinstance(value, bool | int | float | str) else ""
    if text in ("true", "1", "1.0", "yes", "good", "desirable"):
        return True
    if text in ("false", "0", "0.0", "-1", "-1.0", "no", "bad", "undesirable"):
        return False
    raise ValueError(f"its label {value!r} is neither true nor false")
