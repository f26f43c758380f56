"""Read one message of a conversation, in OpenAI's form (with the new or the old form of tool calls) or in ShareGPT's.

A message without any known content field is refused, so that no model is trained to give empty answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from ....models.json_file import parse_json
from .roles import is_call, role_of

Message = dict[str, Any]
REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names of a message's thinking; templates read the first, those of gpt-oss the second."""
CALL = "function_call"
"""OpenAI's former name of a message's only call."""
DEEPEST = 100
"""Greatest depth of lists and objects inside each other in a row."""


def message_of(given: Any, number: int, arguments_as_text: bool, roles: Mapping[str, str] | None) -> Message:
    """A message as templates take it: its role, its content, and its calls in ``tool_calls``.

    Args:
        number: its place in the conversation, from 1 on.
        arguments_as_text: give templates the arguments of calls as JSON text, not as an object.
        roles: role names in the data -> roles that templates know, in addition to those in ``roles.py``.

    Raises:
        ValueError: it is no message, or has no known content field.
    """
    where = f"message {number}"
    if not isinstance(given, Mapping):
        raise ValueError(f"{where} is {type(given).__name__}, not a role with a content")
    message = {key: value for key, value in given.items() if value is not None}
    has = ", ".join(map(str, message)) or "nothing"
    if "role" not in message and "from" in message:
        rest = {key: value for key, value in message.items() if key not in ("from", "value")}
        said = {"content": message["value"]} if "value" in message else {}
        message = {"role": message["from"], **said, **rest}
    if "role" not in message:
        raise ValueError(f"{where} has no role; it has {has}")
    if not isinstance(message["role"], str):
        raise ValueError(f"{where} has a role that is {type(message['role']).__name__}, not a text")
    message = _with_calls(message, where)
    message["role"] = role_of(message["role"], roles)
    if "tool_calls" in message:
        message["tool_calls"] = [*_calls(message["tool_calls"], where, arguments_as_text)]
        if not message["tool_calls"]:
            del message["tool_calls"]
    if not any(name in message for name in ("content", "tool_calls", *REASONING)):
        raise ValueError(f"{where} has no content; it has {has}")
    return message


def _with_calls(message: Message, where: str) -> Message:
    """A message whose call stands in ``tool_calls``, also where it is the content or a ``function_call``."""
    if is_call(message["role"]) and "tool_calls" not in message and "content" in message:
        value = message["content"]
        calls = read_json(value, f"{where}: its function calls") if isinstance(value, str) else value
        rest = {key: each for key, each in message.items() if key != "content"}
        return {**rest, "tool_calls": calls if isinstance(calls, list) else [calls]}
    if not message.get(CALL):
        return {key: each for key, each in message.items() if key != CALL}
    if "tool_calls" in message:
        raise ValueError(f"{where} has both {CALL} and tool_calls")
    call = message[CALL]
    call = read_json(call, f"{where}: its {CALL}") if isinstance(call, str) else call
    return {**{key: each for key, each in message.items() if key != CALL}, "tool_calls": [call]}


def _calls(calls: Any, where: str, as_text: bool) -> Iterator[Any]:
    """Calls of tools with their arguments as an object, as transformers wants them, or as JSON text."""
    if isinstance(calls, str):
        calls = read_json(calls, f"{where}: its tool_calls")
    if not isinstance(calls, list | None):
        raise ValueError(f"{where}: its tool_calls are {type(calls).__name__}, not a list")
    for call in calls or []:
        if not isinstance(call, Mapping):
            raise ValueError(f"{where}: one of its tool_calls is {type(call).__name__}, not a name with arguments")
        call = dict(call) if "function" in call else {"type": "function", "function": dict(call)}
        if not isinstance(call["function"], Mapping):
            kind = type(call["function"]).__name__
            raise ValueError(f"{where}: the function of a call is {kind}, not a name with arguments")
        call["function"] = function = dict(call["function"])
        if not (isinstance(function.get("name"), str) and function["name"]):
            raise ValueError(f"{where}: a call names no function; it has {', '.join(map(str, function)) or 'nothing'}")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str) and not as_text:
            arguments = read_json(arguments, f"{where}: the arguments of a call") or {}
        elif not isinstance(arguments, str) and as_text:
            arguments = json.dumps(arguments, ensure_ascii=False)
        function["arguments"] = arguments
        yield call


def own_choice(message: Message, number: int) -> bool | None:
    """Remove the fields ``train`` and ``weight`` from a message; returns whether it is to be learnt. It is None if
    neither is there, and for a weight of 1, which OpenAI's rows may have without a meaning of its own.

    Raises:
        ValueError: one of them is neither yes nor no, or they contradict each other.
    """
    choice, weight = message.pop("train", None), message.pop("weight", None)
    if choice is not None and not isinstance(choice, bool):
        raise ValueError(f"message {number} has train={choice!r}, which is neither true nor false")
    if weight is None:
        return choice
    if not isinstance(weight, int | float) or weight not in (0, 1):
        raise ValueError(f"message {number} has weight={weight!r}, which is neither 0 nor 1")
    if choice is not None and choice != bool(weight):
        raise ValueError(f"message {number} has train={choice!r} and weight={weight!r}, which contradict each other")
    return choice if weight else False


def read_json(text: str, what: str) -> Any:
    """The value of a JSON text; None if it is empty.

    Args:
        what: name of the text for the error message, in the plural.

    Raises:
        ValueError: it is no JSON, or nested too deeply.
    """
    if not text.strip():
        return None
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{what} are a text that is not valid JSON: {error}") from None
    refuse_deep(value, what)
    return value


def refuse_deep(value: Any, what: str, depth: int = 0) -> None:
    """Refuse a value that is nested too deeply.

    Raises:
        ValueError: more than ``DEEPEST`` lists or objects stand inside each other.
    """
    if depth > DEEPEST:
        raise ValueError(f"{what} are nested too deeply: more than {DEEPEST} lists or objects stand inside each other")
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for each in value:
        refuse_deep(each, what, depth + 1)
