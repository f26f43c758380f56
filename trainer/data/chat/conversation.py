"""Read a conversation from a row of the data set: messages, ShareGPT turns, or a prompt and its completion.

Tools and documents in the row are read too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ....errors import Problem
from ....models.json_file import parse_json
from ..nested_cells import is_kept
from .chat_config import KEY
from .media import AUDIO, IMAGE, Kind, kind_of, named, with_parts
from .media_forms import FOLDER
from .messages import Message, message_of, own_choice, read_json, refuse_deep

COLUMNS = {
    "messages": False,
    "conversations": False,
    "prompt": False,
    "input": False,
    "completion": False,
    "system": False,
    "tools": False,
    "functions": False,
    "documents": False,
    "template_args": False,
}
"""Columns that rows of chats may have; every row has the messages, or a prompt with its completion."""
WITH_IMAGES = {**COLUMNS, IMAGE.column: False, FOLDER: False}
"""Columns that rows of chats with images may have."""
WITH_MEDIA = {**WITH_IMAGES, AUDIO.column: False}
"""Columns that rows of chats with images and audio clips may have."""
ASSISTANT, SYSTEM = "assistant", ("system", "developer")
LISTS = ("messages", "conversations")
"""Columns of messages; they may hold the JSON text of a list."""
SIDES = ("prompt", "completion")
"""Columns of a text or of messages; a text stays a text, whatever it looks like."""
TEXTS = ("system", "input", *SIDES)
"""Columns in which a text is never parsed."""


@dataclass
class Conversation:
    """A row as a chat template takes it."""

    messages: list[Message]
    learnt: list[bool | None]
    """Whether each message is to be learnt, by its ``train`` or OpenAI's ``weight``; None if neither says so."""
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
        roles: role names in the data -> roles that templates know, in addition to those in ``roles.py``.

    Raises:
        ValueError: it holds none; the message says why.
    """
    read = {name: _value(row.get(name), name) for name in COLUMNS}
    prompt, completion = _messages(read)
    given = enumerate((*prompt, *completion), 1)
    every = with_parts([message_of(each, number, arguments_as_text, roles) for number, each in given], row)
    learnt = [own_choice(message, number) for number, message in enumerate(every, 1)]
    flags = [False] * len(prompt) + [True] * len(completion)
    if not every:
        raise ValueError("it has no messages")
    if not isinstance(read["system"], str | None):
        raise ValueError(f"its system is {type(read['system']).__name__}, not a text")
    system = read["system"] or system
    if system and every[0]["role"] not in SYSTEM:
        every, learnt, flags = [{"role": "system", "content": system}, *every], [None, *learnt], [False, *flags]
    args = read["template_args"] or {}
    if not isinstance(args, dict):
        raise ValueError(f"its template_args are {type(args).__name__}, not names with values")
    own = _listed(read["tools"], "tools") or _functions(read["functions"])
    return Conversation(
        every, learnt, flags, own or tools or None, _listed(read["documents"], "documents") or None, args
    )


def content_parts(message: Message, number: int, media: Sequence[Kind] = ()) -> list[dict[str, Any]] | None:
    """Parts of a message whose content is a list; None if it is a text, or there is none.

    Args:
        number: its place in the conversation, from 0 on.
        media: kinds of media that parts may be beside texts.

    Raises:
        ValueError: it holds something else.
    """
    content, where = message.get("content"), f"message {number + 1}"
    if content is None or isinstance(content, str):
        return None
    if not isinstance(content, list):
        raise ValueError(f"{where} has a content that is {type(content).__name__}, not a text")
    parts: list[Any] = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    if wrong := [part for part in parts if not isinstance(part, Mapping)]:
        raise ValueError(f"{where} has a content with a part that is {type(wrong[0]).__name__}, not a text")
    said = [part for part in parts if kind_of(part, media) is None]
    if other := [str(part.get("type", "part without a type")) for part in said if "text" not in part]:
        kinds = ", ".join(dict.fromkeys(other))
        hint = "" if media else " (images and audio need task=image_chat or multimodal_chat)"
        raise ValueError(f"{where} holds {kinds}, and only {named(media, before='texts')} are read{hint}")
    if wrong := [part["text"] for part in said if not isinstance(part["text"], str)]:
        raise ValueError(f"{where} has a part whose text is {type(wrong[0]).__name__}, not a text")
    return parts


def refuse_no_completion(found: Conversation) -> None:
    """Refuse a conversation without the column that is learnt with ``data.chat.loss=completions``.

    Raises:
        ValueError: it has none.
    """
    if not any(found.completion):
        raise ValueError("it has no column completion, which alone is learnt with data.chat.loss=completions")


def _messages(read: Mapping[str, Any]) -> tuple[list[Any], list[Any]]:
    """Messages of the prompt, and those of the completion."""
    found = read["messages"] if read["messages"] is not None else read["conversations"]
    if found is not None:
        if not isinstance(found, list):
            raise ValueError(f"its messages are {type(found).__name__}, not a list")
        return found, []
    if read["prompt"] is None or read["completion"] is None:
        raise ValueError("it has neither messages nor a prompt with its completion")
    prompt, completion = (_side(read[name], name) for name in SIDES)
    prompt = with_input(prompt, read["input"])
    sides = ((prompt, "user"), (completion, ASSISTANT))
    first, second = (each if isinstance(each, list) else [{"role": role, "content": each}] for each, role in sides)
    return first, second


def _value(value: Any, name: str) -> Any:
    """A cell of a row. JSON texts of lists and objects are parsed; the nulls that Arrow writes for missing fields are
    left out."""
    if isinstance(value, str):
        if name in TEXTS and not is_kept(value):
            return value
        return read_json(value, f"its {name}")
    if name in (*LISTS, *SIDES) and isinstance(value, list | tuple):
        for number, each in enumerate(value, 1):
            refuse_deep(each, f"message {number}: its values")
    else:
        refuse_deep(value, f"its {name}")
    return _without_null(value)


def read_side(value: Any, name: str) -> Any:
    """One side of a row, a prompt or an answer: a text, a list of messages, or None.

    Raises:
        ValueError: it is neither.
    """
    return _side(_value(value, "completion"), name)


def with_input(prompt: Any, further: Any) -> Any:
    """A prompt with the text that belongs to it behind a blank line, such as Alpaca's ``input``.

    Raises:
        ValueError: one of them is no text.
    """
    further = _value(further, "input")
    if further is None or (isinstance(further, str) and not further.strip()):
        return prompt
    if not isinstance(further, str):
        raise ValueError(f"its input is {type(further).__name__}, not a text")
    if not isinstance(prompt, str | None):
        raise ValueError("its prompt is a list of messages, to which no input belongs")
    return f"{prompt}\n\n{further}" if prompt else further


def _side(found: Any, name: str) -> Any:
    if not isinstance(found, str | list | None):
        raise ValueError(f"its {name} is {type(found).__name__}, neither a text nor a list of messages")
    return found


def texts_like_messages(row: Mapping[str, Any]) -> list[str]:
    """Columns among ``SIDES`` that hold a text which reads like a list of messages, and is a text nonetheless."""
    if any(row.get(name) is not None for name in LISTS):
        return []
    return [name for name in SIDES if isinstance(row.get(name), str) and _like_messages(row[name])]


def unread_functions(row: Mapping[str, Any]) -> bool:
    """Whether a row has tools and functions, of which the tools count."""
    return all(_value(row.get(name), name) for name in ("tools", "functions"))


def _like_messages(text: str) -> bool:
    if is_kept(text) or not text.lstrip().startswith("[") or not text.rstrip().endswith("]"):
        return False
    try:
        value = parse_json(text)
    except ValueError:
        return False
    roles = [isinstance(each, Mapping) and ("role" in each or "from" in each) for each in value]
    return bool(roles) and all(roles)


def _without_null(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_null(each) for key, each in value.items() if each is not None}
    return [_without_null(each) for each in value] if isinstance(value, list | tuple) else value


def _listed(value: Any, name: str) -> list[Any] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise ValueError(f"its {name} are {type(value).__name__}, not a list")
    return [
        read_json(each, f"its {name}") if isinstance(each, str) and name in ("tools", "functions") else each
        for each in value
    ]


def _functions(value: Any) -> list[Any]:
    """OpenAI's former list of functions as tools.

    Raises:
        ValueError: it is no list of functions.
    """
    found = []
    for each in _listed(value, "functions") or ():
        if not isinstance(each, Mapping):
            raise ValueError(f"one of its functions is {type(each).__name__}, not a name with parameters")
        found.append(each if "function" in each else {"type": "function", "function": dict(each)})
    return found


def columns_problem(names: Sequence[str], key: str, there: Sequence[str] = ()) -> list[Problem]:
    """The problem of rows that hold no conversation.

    Args:
        names: columns that are there, by the names of ``COLUMNS``.
        key: where their source stands in the recipe.
        there: all columns of the source, where they are known.
    """
    if "messages" in names or "conversations" in names or {"prompt", "completion"} <= set(names):
        return []
    why = f"gives none of the columns of a chat ({KEY} is set): messages, conversations, or prompt and completion"
    why += f"; columns there: {', '.join(there)}" if there else ""
    fix = "name the columns that hold them: data.columns.messages=COLUMN, or data.columns={prompt: COLUMN, completion: "
    return [Problem(key, why, fix + "COLUMN}")]
