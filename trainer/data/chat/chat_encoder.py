"""Encode a conversation as tokens and labels, and refuse it if the tokens to train on cannot be determined exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ....models.loss import IGNORE
from ..tokenizer import content_hash
from .answer_form import Form
from .chat_config import ChatConfig
from .chat_text import ChatTemplate, ChatText
from .conversation import (
    Conversation,
    content_parts,
    conversation_of,
    texts_like_messages,
    unread_functions,
)
from .media import Kind, kind_of
from .messages import Message
from .token_offsets import Control, Encoder, Encoding, labels_of
from .tools import tool_schemas
from .traced_text import ELSEWHERE
from .turns import Turns


@dataclass(frozen=True)
class EncodedChat:
    """A conversation as tokens."""

    text: str
    input_ids: np.ndarray
    labels: np.ndarray
    """The tokens that are learnt, and -100 in place of the others (int64)."""
    stops: tuple[int, ...]
    """Places of the tokens that end a turn and are learnt."""
    notes: tuple[str, ...] = ()
    """Notes on a usable conversation, such as parts that the template leaves out."""


class ChatEncoder:
    """Encodes conversations by the template of a tokenizer."""

    media: tuple[Kind, ...] = ()
    """Kinds of media that messages may hold beside texts."""

    def __init__(self, tokenizer: Any, config: ChatConfig) -> None:
        self.config, self.template = config, ChatTemplate(tokenizer, config)
        self.encoder = Encoder(tokenizer, config.stop_tokens)
        self.turns = Turns(self.template, self.encoder, config)
        self.tools = tool_schemas(config.tools)

    @property
    def made_by(self) -> str:
        """A digest of everything that determines the tokens."""
        return content_hash(self.template.tokenizer)

    def conversation(self, row: Mapping[str, Any]) -> Conversation:
        """The conversation of a row, with contents of the kind that its template takes.

        Raises:
            ValueError: it holds none, or one that the template does not take.
        """
        config = self.config
        as_text = config.tool_arguments == "text"
        return self.fitted(conversation_of(row, config.system, self.tools, as_text, config.role_names))

    def fitted(self, found: Conversation) -> Conversation:
        """A conversation with contents of the kind that its template takes: texts, or lists of parts.

        Raises:
            ValueError: the template does not take it.
        """
        form = self.turns.forms.of(found)
        messages = [_fitting(message, number, form, self.media) for number, message in enumerate(found.messages)]
        return replace(found, messages=messages)

    def __call__(self, row: Mapping[str, Any]) -> EncodedChat:
        """Tokens and labels of a row.

        Raises:
            ValueError: the labels cannot be told exactly; the message says why.
        """
        conversation = self.conversation(row)
        text = self.template.text(conversation)
        unseen = list(_unseen(conversation, text))
        if unseen and self.config.unseen == "refuse":
            raise ValueError(
                f"the template leaves out {', '.join(unseen)} (data.chat.unseen=allow trains on the row without it)"
            )
        encoding = self.encoder(text.text)
        _refuse_doubled(text, encoding)
        learnt, places, turns = self.turns.learnt(conversation, text, encoding)
        labels = labels_of(text.text, text.solid, learnt, encoding)
        stops = tuple(sorted(place for place in places if labels[place] != IGNORE))
        notes = [f"the template leaves out {each}" for each in unseen]
        if any(_in_message(text, each) for each in encoding.controls):
            notes.append("a message holds control tokens")
        for name in texts_like_messages(row):
            notes.append(f"the {name} is a text that reads like a list of messages, and is taken as a text")
        if unread_functions(row):
            notes.append("the functions are not read beside the tools")
        if 0 < len(stops) < turns:
            notes.append("a turn that is learnt does not end with a token that ends it, while another one does")
        return EncodedChat(text.text, encoding.ids, labels, stops, tuple(notes))


def _in_message(text: ChatText, control: Control) -> bool:
    """Whether a control token comes from a message's content, not from the template."""
    return bool(text.message[control.start] >= 0 and text.spoken[control.start])


def _fitting(message: Message, number: int, form: Form, media: Sequence[Kind] = ()) -> Message:
    """A message whose content is a text, or a list of parts, as its template takes it.

    Args:
        media: kinds of media that parts may be; the template gets a placeholder for each.
    """
    parts = content_parts(message, number, media)
    content = message.get("content")
    if parts is not None:
        kinds = [kind_of(part, media) for part in parts]
        if (first := next(filter(None, kinds), None)) is not None and not form.lists:
            raise ValueError(f"message {number + 1} holds an {first.one}, and the template takes texts alone")
        parts = [part if kind is None else {"type": kind.name} for part, kind in zip(parts, kinds, strict=True)]
        return {**message, "content": parts if form.lists else "".join(part["text"] for part in parts)}
    if isinstance(content, str) and not form.texts:
        return {**message, "content": [{"type": "text", "text": content}]}
    return message


def _unseen(conversation: Conversation, text: ChatText) -> list[str]:
    """Parts of a conversation that the text does not show."""
    found = []
    for number, message in enumerate(conversation.messages):
        said = [name for name in ("content", "tool_calls") if _says(message, name)]
        unseen = [name for name in said if (number, name) not in text.shown]
        whole = f"message {number + 1} ({message['role']})"
        found += [whole] if unseen and unseen == said else [f"{name} of {whole}" for name in unseen]
    for name in ("tools", "documents"):
        if getattr(conversation, name) and (ELSEWHERE, name) not in text.shown:
            found.append(f"the {name}")
    return found


def _says(message: Message, name: str) -> bool:
    value = message.get(name)
    if name == "content" and isinstance(value, list):
        return any(str(part.get("text", "")).strip() for part in value)
    return bool(value.strip() if isinstance(value, str) else value)


def _refuse_doubled(text: ChatText, encoding: Encoding) -> None:
    """Refuse a control token that a message and the template both write at one place."""
    for one, other in zip(encoding.controls, encoding.controls[1:], strict=False):
        beside = one.token == other.token and one.place + 1 == other.place
        if beside and _in_message(text, one) != _in_message(text, other):
            token = text.text[one.start : one.end]
            raise ValueError(f"a message holds {token} where the template writes it too")
