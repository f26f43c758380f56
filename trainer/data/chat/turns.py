"""Find the part of a conversation's rendered text to train on, such as the assistant's turns and the tokens that end
them. The result says for each character of the text whether it is trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .answer_form import Form, Forms, extent, own_controls
from .chat_config import KEY, ChatConfig
from .chat_text import ChatTemplate, ChatText
from .conversation import ASSISTANT, SYSTEM, Conversation, refuse_no_completion
from .roles import role_of, unknown_role
from .token_offsets import Control, Encoder, Encoding

EMPTY_THINKING = re.compile(r"\s*(?:<(think|thinking|thought)>\s*</\1>|\[(THINK)\]\s*\[/\2\])\s*")
"""Empty thinking tags, which templates write before an answer without thinking."""


class Region(NamedTuple):
    """Characters of a turn."""

    start: int
    end: int
    stop: Control | None = None
    """The token that ends it."""


class Chat(NamedTuple):
    """One conversation: its messages, its rendered text, its tokens, and the form of its template."""

    conversation: Conversation
    text: ChatText
    encoding: Encoding
    form: Form


class Learnt(NamedTuple):
    """The part of a conversation to train on."""

    characters: np.ndarray
    """For each character of the text, whether it is trained on."""
    stops: set[int]
    """Places of the tokens among them that end turns."""
    turns: int
    """Number of turns; 0 if every character is learnt."""


class Turns:
    """Finds the characters to train on, in texts that were rendered by a tokenizer's templates."""

    def __init__(self, template: ChatTemplate, encoder: Encoder, config: ChatConfig) -> None:
        self.encoder, self.config, self.forms = encoder, config, Forms(template, encoder, config)

    def learnt(self, conversation: Conversation, text: ChatText, encoding: Encoding) -> Learnt:
        """Find the part of a conversation to train on.

        Raises:
            ValueError: it cannot be determined exactly.
        """
        chat = Chat(conversation, text, encoding, self.forms.of(conversation))
        if self.config.loss == "all":
            ends = {each.place for each in encoding.controls if each.token == chat.form.stop}
            return Learnt(np.ones(len(text.text), bool), ends, 0)
        learnt, stops, turns = np.zeros(len(text.text), bool), set[int](), 0
        self._refuse_unknown(conversation)
        if chat.form.marks:
            _refuse_marks_of_others(conversation, text)
        for number in self._chosen(conversation):
            start, end, stop = self._region(chat, number)
            turns += end > start
            if chat.form.marks and conversation.messages[number]["role"] == ASSISTANT:
                marked = _marked(conversation, text, number)
                learnt |= marked
                if stop is None or not (marked.any() or not len(text.own(number))):
                    continue
                start = stop.start
            learnt[start:end] = True
            if stop is not None:
                stops.add(stop.place)
        return Learnt(learnt, stops, turns)

    @property
    def _asked(self) -> list[str]:
        """``data.chat.roles`` as templates know them."""
        return [role_of(role, self.config.role_names) for role in self.config.roles]

    def _refuse_unknown(self, conversation: Conversation) -> None:
        """Refuse a message whose role nothing is known of: it may be the assistant's, and would not be learnt."""
        pairs = zip(conversation.messages, conversation.learnt, strict=True)
        roles = [message["role"] for message, learnt in pairs if learnt is not False]
        named = [*self.config.role_names.values(), *self._asked]
        unknown = unknown_role(roles, self.forms.template.chosen(conversation.tools), named)
        if unknown is not None:
            key, shown = f"{KEY}.role_names", json.dumps(unknown, ensure_ascii=False)
            why = f"it has messages of the role {unknown}, which neither this template nor any usual one knows"
            fix = f"{key}={{{shown}: assistant}} says whose they are, {{{shown}: {shown}}} lets them be read only"
            raise ValueError(f"{why} ({fix})")

    def _chosen(self, conversation: Conversation) -> Iterator[int]:
        """Numbers of the messages that are learnt."""
        roles = self._asked if self.config.loss == "roles" else [ASSISTANT]
        numbers = [number for number, message in enumerate(conversation.messages) if message["role"] in roles]
        if self.config.loss == "completions":
            refuse_no_completion(conversation)
            numbers = [number for number in numbers if conversation.completion[number]]
        if self.config.loss == "last":
            numbers = numbers[-1:]
        if self.config.loss in ("assistant", "roles"):
            numbers = sorted({*numbers, *(number for number, asked in enumerate(conversation.learnt) if asked)})
        yield from (number for number in numbers if conversation.learnt[number] is not False)

    def _region(self, chat: Chat, number: int) -> Region:
        if chat.conversation.messages[number]["role"] != ASSISTANT:
            return self._said(chat, number)
        text = chat.text
        begin, end = extent(text, number)
        every = text.own(number)
        own = every[(every >= begin) & (every < end)]  # other places hold copies, as of a tool's name
        if len(every) and not len(own):
            raise ValueError(f"the template writes message {number + 1} at the place of another one")
        first = int(own[0]) if len(own) else end
        start = begin + self._behind_prompt(chat, begin, first, number)
        if not self.config.learn_empty_thinking:
            for empty in EMPTY_THINKING.finditer(text.text, begin, first):
                start = max(start, empty.end())
        said = int(own[-1]) + 1 if len(own) else start
        message = chat.conversation.messages[number]
        closes = bool(message.get("tool_calls") or not message.get("content"))
        stop = self._stop(chat, said, end, closes)
        last = stop.end if stop else max(start, said + (self._closing(chat, said, end, number) if closes else 0))
        _refuse_others(text, start, last, number)
        return Region(start, last, stop)

    def _said(self, chat: Chat, number: int) -> Region:
        """The turn of another role: from its first character to its last, and the token that ends it."""
        own = chat.text.own(number)
        if not len(own):
            return Region(0, 0)
        start, end = int(own[0]), int(own[-1]) + 1
        _refuse_others(chat.text, start, end, number)
        whole = np.flatnonzero(chat.text.turn == number)
        stop = self._stop(chat, end, int(whole[-1]) + 1) if len(whole) and whole[-1] >= end - 1 else None
        return Region(start, stop.end if stop else end, stop)

    def _behind_prompt(self, chat: Chat, begin: int, first: int, number: int) -> int:
        """Number of characters from ``begin`` on, before an answer at ``first``, that the model does not write."""
        text, prompts = chat.text, chat.form.prompts
        if not prompts:
            return 0
        head = text.text[begin:first]
        for prompt in prompts:
            if (place := head.find(prompt)) >= 0:
                return place + len(prompt)
        before = chat.conversation.messages[number - 1]["role"] if number else "user"
        if before not in ("user", *SYSTEM, ASSISTANT) and len(own := text.own(number - 1)) and own[-1] < begin:
            asked = self.forms.behind_tool(chat.conversation, before)
            if asked and asked == text.text[own[-1] + 1 : first][: len(asked)]:
                return max(len(asked) - (begin - int(own[-1]) - 1), 0)
        why = f"message {number + 1} does not begin as an answer does in this template ({prompts[0]!r})"
        raise ValueError(f"{why}, but with {head!r}")

    def _closing(self, chat: Chat, said: int, end: int, number: int) -> int:
        """Number of characters with which the template closes a call, or thinking, at the end of a turn that no token
        ends: those that do not stand behind plain answers too, as the header of the next message does."""
        tail, header = chat.text.text[said:end].rstrip(), chat.form.behind
        if not header or header not in tail:
            return len(tail)
        if not tail.endswith(header):
            why = f"the end of message {number + 1} cannot be found"
            raise ValueError(f"{why}, since the template writes {tail!r} after it")
        return len(tail[: -len(header)].rstrip())

    def _stop(self, chat: Chat, start: int, end: int, closes: bool = False) -> Control | None:
        """The token that ends a turn, between ``start`` and ``end`` or right behind.

        Args:
            closes: whether the template may close a call, or thinking, in front of it.
        """
        text, form, named = chat.text, chat.form, self.encoder.stops
        found = own_controls(chat.encoding, text, start, end)
        usual = [each for each in found if each.token == form.stop]
        if found:
            end_token = usual[0] if usual else found[-1]
            between = text.text[start : end_token.start]
            if form.behind:
                return None if form.behind in between else end_token
            # A token of headers too, behind words that the template writes, belongs to the next header.
            words = any(part.strip() for part in _outside(between, start, found))
            return None if words and end_token.token in form.begins and not closes else end_token
        behind = next((each for each in chat.encoding.controls if each.start >= end), None)
        between = text.text[end if closes else start : behind.start] if behind is not None else ""
        if behind is None or between.strip() or text.message[behind.start] >= 0:
            return None
        # Templates may write it behind the last turn, or in front of the next one. Headers of turns are named.
        ends = self.encoder.ends | {form.stop}
        usable = named | (ends - form.begins) if text.turn[behind.start] >= 0 else ends
        return behind if behind.token in usable else None


def _outside(part: str, start: int, controls: list[Control]) -> Iterator[str]:
    """The pieces between control tokens of a text that begins at ``start``."""
    place = start
    for each in controls:
        if each.start >= start + len(part):
            break
        yield part[place - start : each.start - start]
        place = each.end
    yield part[place - start :]


def _marked(conversation: Conversation, text: ChatText, number: int) -> np.ndarray:
    """For each character, whether it is in a block ``{% generation %}`` of this message. A block behind all messages,
    as around a last ``eos_token``, is the last message's."""
    own = text.turn == number
    if number == len(conversation.messages) - 1:
        own[np.flatnonzero(text.turn >= 0).max(initial=-1) + 1 :] = True
    return text.generated & own


def _refuse_marks_of_others(conversation: Conversation, text: ChatText) -> None:
    """Refuse blocks ``{% generation %}`` at a message that is not the assistant's."""
    answers = [number for number, message in enumerate(conversation.messages) if message["role"] == ASSISTANT]
    others = text.generated.copy()
    for number in answers:
        others &= ~_marked(conversation, text, number)
    if others.any():
        number = int(text.turn[others][0])
        whose = f"message {number + 1} ({conversation.messages[number]['role']})" if number >= 0 else "no message"
        raise ValueError(f"the template has a block for what the model writes at {whose}")


def _refuse_others(text: ChatText, start: int, end: int, number: int) -> None:
    part = text.message[start:end]
    if len(others := np.unique(part[(part >= 0) & (part != number) & text.spoken[start:end]])):
        raise ValueError(f"the template writes message {int(others[0]) + 1} into the turn of message {number + 1}")
