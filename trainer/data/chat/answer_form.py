"""Find out how a chat template begins and ends an answer, by rendering a few small trial chats.

This is done once for each template and its arguments. The conversations of the data set are rendered once, as a whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .chat_config import ChatConfig
from .chat_text import ChatTemplate, ChatText
from .conversation import ASSISTANT, Conversation, Message
from .token_offsets import Control, Encoder, Encoding
from .traced_template import has_generation

BEGUN = re.compile(r"(?:<(think|thinking|thought)>\s*(?:</\1>\s*)?|\[THINK\]\s*(?:\[/THINK\]\s*)?)$")
"""Thinking tags at the end of a generation prompt: an opening tag, with or without its closing tag."""
USER, ANSWER, CALL = "q", "a", "call00000"
"""Contents of the messages with which a template is tried, and the id of a tool call (Mistral's have nine letters)."""


@dataclass(frozen=True)
class Form:
    """How a template begins and ends a turn of the assistant."""

    prompts: tuple[str, ...]
    """Texts that the template may write before an answer, the longest first. Before earlier answers of a conversation,
    templates may leave out the end of the text, such as ``<think>``."""
    stop: int | None
    """The token that ends an answer."""
    begins: frozenset[int]
    """Control tokens that the template writes before the first message's content, such as those of headers."""
    behind: str
    """Text that the template writes behind an answer without such a token, such as the header of the next message."""
    texts: bool
    lists: bool
    """Whether contents may be texts, and lists of parts."""
    marks: bool
    """Whether the template says itself what the model writes, by ``{% generation %}``."""


class Forms:
    """Forms of one tokenizer's templates."""

    def __init__(self, template: ChatTemplate, encoder: Encoder, config: ChatConfig) -> None:
        self.template, self.encoder, self.config = template, encoder, config
        self.known: dict[str, Form] = {}
        self.known_tools: dict[str, str] = {}

    def of(self, conversation: Conversation) -> Form:
        """The form of a conversation's template.

        Raises:
            ValueError: the template does not take a question and an answer.
        """
        key = self._key(conversation)
        if key not in self.known:
            self.known[key] = self._tried(conversation)
        return self.known[key]

    def behind_tool(self, given: Conversation, role: str) -> str:
        """The text that the template writes between a tool result and an answer; empty if it refuses the trial."""
        key = self._key(given, role)
        if key not in self.known_tools:
            arguments = "{}" if self.config.tool_arguments == "text" else {}
            call = {"type": "function", "id": CALL, "function": {"name": "f", "arguments": arguments}}
            result = {"role": role, "name": "f", "tool_call_id": CALL, "content": USER}
            chat = [{"role": "user", "content": USER}, {"role": ASSISTANT, "content": "", "tool_calls": [call]}, result]
            try:
                asked = self._text(given, chat, True)
                self.known_tools[key] = asked.text[int(asked.own(2)[-1]) + 1 :] if len(asked.own(2)) else ""
            except ValueError:
                self.known_tools[key] = ""
        return self.known_tools[key]

    def _key(self, given: Conversation, role: str = "") -> str:
        template = self.template.chosen(given.tools)
        about = [template, given.template_args, bool(given.tools), bool(given.documents), role]
        return json.dumps(about, sort_keys=True, default=str)

    def _tried(self, given: Conversation) -> Form:
        kinds: dict[str, list[ChatText]] = {}
        reason = ""
        for kind, content in (("texts", str), ("lists", lambda text: [{"type": "text", "text": text}])):
            try:
                found = self._small(given, content)
            except ValueError as error:
                reason = reason or str(error)
                continue
            if all(len(text.own(number)) == 1 for text, number in zip(found, (0, 0, 1, 1), strict=True)):
                kinds[kind] = found
        if not kinds:
            why = reason or "the template does not write what messages say"
            raise ValueError(f"{why} (tried with one question and one answer)")
        without, asked, answered, last = next(iter(kinds.values()))
        begins = frozenset(each.token for each in self._controls(without, 0, int(without.own(0)[0])))
        stop, end = self._stop(answered, last, begins), extent(answered, 1)[1]
        return Form(
            _prompts(without, asked, answered, last),
            stop,
            begins,
            "" if stop is not None else answered.text[int(answered.own(1)[-1]) + 1 : end].strip(),
            "texts" in kinds,
            "lists" in kinds,
            has_generation(self.template.chosen(given.tools)),
        )

    def _small(self, given: Conversation, content: Callable[[str], Any]) -> list[ChatText]:
        """Texts of trial chats: a question; with a generation prompt; with an answer and a question; with an answer."""
        question: Message = {"role": "user", "content": content(USER)}
        answer: Message = {"role": ASSISTANT, "content": content(ANSWER)}
        chats = (
            ([question], False),
            ([question], True),
            ([question, answer, question], False),
            ([question, answer], False),
        )
        return [self._text(given, messages, prompt) for messages, prompt in chats]

    def _text(self, given: Conversation, messages: Sequence[Message], prompt: bool) -> ChatText:
        return self.template.text(replace(given, messages=list(messages), learnt=[], completion=[]), prompt)

    def _stop(self, answered: ChatText, last: ChatText, begins: frozenset[int]) -> int | None:
        """The token at which generation stops. Among the control tokens behind an answer it is the end-of-text token,
        or else the last of the consecutive ones. Where the template writes none at the answer, it is the one that
        stands behind it, whether or not a message follows."""
        found = self._controls(answered, int(answered.own(1)[-1]) + 1, extent(answered, 1)[1])
        if not found:
            behind = {self._behind(text) for text in (answered, last)}
            return next(iter(behind)) if len(behind) == 1 and not behind & begins else None
        eos = self.encoder.tokenizer.eos_token_id
        if any(each.token == eos for each in found):
            return eos
        end = None
        for each in found:
            if end is not None and each.place != end.place + 1:
                break
            end = each
        return None if end is None else end.token

    def _behind(self, text: ChatText) -> int | None:
        """The control token behind an answer, with white space alone between them."""
        said = int(text.own(1)[-1]) + 1
        found = self._controls(text, said, len(text.text))
        return found[0].token if found and not text.text[said : found[0].start].strip() else None

    def _controls(self, text: ChatText, start: int, end: int) -> list[Control]:
        return own_controls(self.encoder(text.text), text, start, end)


def extent(text: ChatText, number: int) -> tuple[int, int]:
    """Begin and end of the characters that the template writes for a message.

    Raises:
        ValueError: it writes the message nowhere, or in several places.
    """
    places = np.flatnonzero(text.turn == number)
    if not len(places):
        raise ValueError(f"the template leaves out message {number + 1}")
    begin, end = int(places[0]), int(places[-1]) + 1
    if len(places) != end - begin:
        raise ValueError(f"the template writes message {number + 1} in several places")
    return begin, end


def own_controls(encoding: Encoding, text: ChatText, start: int, end: int) -> list[Control]:
    """Control tokens between two places that the template itself writes."""
    inside = (each for each in encoding.controls if start <= each.start and each.end <= end)
    return [each for each in inside if text.message[each.start] < 0]


def _prompts(without: ChatText, asked: ChatText, answered: ChatText, last: ChatText) -> tuple[str, ...]:
    """The texts that may stand before an answer (``Form.prompts``), from the trial chats of ``Forms._small``."""
    begin, own = extent(answered, 1)[0], answered.own(1)
    head = answered.text[begin : own[0]]
    # A question is followed by the end of its turn, and then by the generation prompt.
    closing = answered.text[int(answered.own(0)[-1]) + 1 : begin]
    invited = asked.text[int(asked.own(0)[-1]) + 1 :]
    prompt = invited[len(closing) :] if invited.startswith(closing) else _added(without.text, asked.text)
    prompt = prompt if prompt.strip() else head if head.strip() else ""
    heads = (head, last.text[extent(last, 1)[0] : last.own(1)[0]])
    shorter = sorted({BEGUN.sub("", prompt), *(_common(prompt, each) for each in heads)}, key=len, reverse=True)
    return tuple(dict.fromkeys(each for each in (prompt, *shorter) if each.strip()))


def _common(one: str, other: str) -> str:
    """The beginning that two texts share, up to a whole ``<tag>``."""
    pairs = enumerate(zip(one, other, strict=False))
    size = next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
    open_tag = max(one.rfind("<", 0, size), one.rfind("[", 0, size))
    closed = max(one.rfind(">", 0, size), one.rfind("]", 0, size))
    return one[:open_tag] if open_tag > closed and size < len(one) else one[:size]


def _added(without: str, text: str) -> str:
    """The text that the generation prompt adds; some templates leave out the end of the text before it."""
    if text.startswith(without):
        return text[len(without) :]
    same = next((place for place, (one, other) in enumerate(zip(without, text, strict=False)) if one != other), 0)
    return text[same:]
