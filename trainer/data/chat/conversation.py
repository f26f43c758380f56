"""Read a conversation from a row of the data set: messages, ShareGPT turns, or a prompt and its completion.

Tools and documents in the row are read too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....errors import Problem
from ....models.json_file import parse_json
from .chat_config import KEY

Message = dict[str, Any]
COLUMNS = {
    "messages": False,
    "conversations": False,
    "prompt": False,
    "completion": False,
    "system": False,
    "tools": False,
    "documents": False,
    "template_args": False,
}
"""Columns that rows of chats may have; every row has the messages, or a prompt with its completion."""
IMAGES = "images"
"""Column with the pictures of parts that hold none themselves, in order."""
PICTURED = {**COLUMNS, IMAGES: False}
"""Columns that rows of chats with pictures may have."""
ROLES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
}
"""Names of roles in data of ShareGPT's form -> roles that templates know."""
PICTURE = ("image", "image_url", "picture")
"""Types of the parts of a message that are pictures."""
ASSISTANT, SYSTEM = "assistant", ("system", "developer")


@dataclass
class Conversation:
    """A row as a chat template takes it."""

    messages: list[Message]
    learnt: list[bool | None]
    """Whether each message is to be learnt, by its ``train``, or OpenAI's ``weight``; None if it has neither."""
    completion: list[bool]
    """Which messages are of the column ``completion``."""
    tools: list[Any] | None = None
    documents: list[Any] | None = None
    template_args: dict[str, Any] = field(default_factory=dict)


def conversation_of(
    row: Mapping[str, Any],
    system: str | None = None,
    tools: list[Any] | None = None,
    arguments_as_text: bool = False,
    roles: Mapping[str, str] | None = None,
) -> Conversation:
    """The conversation of a row.

    Args:
        system: begins conversations that have no message of the system.
        tools: JSON schemas for rows without their own.
        arguments_as_text: give templates the arguments of calls as JSON text, not as an object.
        roles: names of roles that differ -> roles that templates know, beside ``ROLES``.

    Raises:
        ValueError: it holds none; the message says why.
    """
    read = {name: _value(row.get(name), name) for name in COLUMNS}
    prompt, completion = _messages(read)
    every = [_message(each, arguments_as_text, {**ROLES, **(roles or {})}) for each in (*prompt, *completion)]
    learnt = [_own_choice(message) for message in every]
    flags = [False] * len(prompt) + [True] * len(completion)
    if not every:
        raise ValueError("it has no messages")
    system = read["system"] if isinstance(read["system"], str) and read["system"] else system
    if system and every[0]["role"] not in SYSTEM:
        every, learnt, flags = [{"role": "system", "content": system}, *every], [None, *learnt], [False, *flags]
    args = read["template_args"] or {}
    if not isinstance(args, dict):
        raise ValueError(f"its template_args are {type(args).__name__}, not names with values")
    own = _listed(read["tools"], "tools")
    return Conversation(
        every, learnt, flags, own or tools or None, _listed(read["documents"], "documents") or None, args
    )


def is_picture(part: Any) -> bool:
    """Whether a part of a message's content is an image."""
    return isinstance(part, Mapping) and (part.get("type") in PICTURE or ("image" in part and "text" not in part))


def _messages(read: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Messages of the prompt, and those of the completion."""
    found = read["messages"] if read["messages"] is not None else read["conversations"]
    if found is not None:
        if not isinstance(found, list):
            raise ValueError(f"its messages are {type(found).__name__}, not a list")
        return found, []
    if read["prompt"] is None or read["completion"] is None:
        raise ValueError("it has neither messages nor a prompt with its completion")
    return _side(read["prompt"], "user"), _side(read["completion"], ASSISTANT)


def _side(value: Any, role: str) -> list[Any]:
    return value if isinstance(value, list) else [{"role": role, "content": value}]


def _value(value: Any, name: str) -> Any:
    """A cell of a row. Texts that hold JSON are parsed; the nulls that Arrow writes for missing fields are left out."""
    if isinstance(value, str) and name not in ("system", "prompt", "completion"):
        return _read_json(value, name)
    if isinstance(value, str) and name != "system" and value.lstrip().startswith("[{"):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return _without_null(value)


def _read_json(text: str, name: str) -> Any:
    if not text.strip():
        return None
    try:
        return parse_json(text)
    except ValueError as error:
        raise ValueError(f"its {name} are a text that is no JSON: {error}") from None


def read_side(value: Any, name: str = "completion") -> Any:
    """One side of a row, a prompt or an answer: a text, a list of messages, or None.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        value = _value(value, "completion")
    found = _without_null(value)
    if found is not None and not isinstance(found, str | list):
        raise ValueError(f"its {name} is {type(found).__name__}, neither a text nor a list of messages")
    return found


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(each) for key, each in value.items() if each is not None}
    return [_without_null(each) for each in value] if isinstance(value, list | tuple) else value


def _message(given: Any, arguments_as_text: bool, roles: Mapping[str, str]) -> Message:
    if not isinstance(given, Mapping):
        raise ValueError(f"one of its messages is {type(given).__name__}, not a role with a content")
    message = {key: value for key, value in given.items() if value is not None}
    if "role" not in message and "from" in message:
        message = _of_sharegpt(message)
    if not isinstance(message.get("role"), str):
        raise ValueError(f"one of its messages has no role; it has {', '.join(map(str, given)) or 'nothing'}")
    message["role"] = roles.get(message["role"], message["role"])
    if "tool_calls" in message:
        message["tool_calls"] = [*_calls(message["tool_calls"], arguments_as_text)]
        if not message["tool_calls"]:
            del message["tool_calls"]
    return message


def _of_sharegpt(message: Message) -> Message:
    """A turn ``{from, value}`` as a message; calls of functions stand in it as JSON."""
    rest = {key: value for key, value in message.items() if key not in ("from", "value")}
    role, value = message["from"], message.get("value", "")
    if role != "function_call":
        return {"role": role, "content": value, **rest}
    calls = _read_json(value, "function calls") if isinstance(value, str) else value
    return {"role": role, "tool_calls": calls if isinstance(calls, list) else [calls], **rest}


def _calls(calls: Any, as_text: bool) -> Iterator[Any]:
    """Calls of tools with their arguments as an object, as transformers wants them, or as JSON text."""
    if isinstance(calls, str):
        calls = _read_json(calls, "tool_calls")
    for call in _listed(calls, "tool_calls") or []:
        if not isinstance(call, Mapping):
            raise ValueError(f"one of its tool_calls is {type(call).__name__}, not a name with arguments")
        call = dict(call) if "function" in call else {"type": "function", "function": dict(call)}
        call["function"] = function = dict(call["function"])
        arguments = function.get("arguments", {})
        if isinstance(arguments, str) and not as_text:
            arguments = _read_json(arguments, "arguments of a call") or {}
        elif not isinstance(arguments, str) and as_text:
            arguments = json.dumps(arguments, ensure_ascii=False)
        function["arguments"] = arguments
        yield call


def _own_choice(message: Message) -> bool | None:
    """Remove the fields ``train`` and ``weight`` from a message; returns whether it is to be learnt, None if unsaid."""
    choice, weight = message.pop("train", None), message.pop("weight", None)
    if choice is None and weight is not None:
        choice = bool(weight)
    if choice is not None and not isinstance(choice, bool):
        raise ValueError(f"one of its messages has train={choice!r}, which is neither true nor false")
    return choice


def _listed(value: Any, name: str) -> list[Any] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"its {name} are {type(value).__name__}, not a list")
    return [_read_json(each, name) if isinstance(each, str) and name == "tools" else each for each in value]


def columns_problem(names: Sequence[str], key: str) -> list[Problem]:
    """The problem of rows that hold no conversation.

    Args:
        names: columns that are there, by the names of ``COLUMNS``.
        key: where their source stands in the recipe.
    """
    if "messages" in names or "conversations" in names or {"prompt", "completion"} <= set(names):
        return []
    why = f"gives none of the columns of a chat ({KEY} is set): messages, conversations, or prompt and completion"
    return [Problem(key, why, "name the column that holds them: data.columns.messages=COLUMN")]
