"""Find the characters of a conversation to train on, such as the assistant's turns and the tokens that end them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .answer_form import Form, Forms, extent, own_controls
from .chat_config import ChatConfig
from .chat_text import ChatTemplate, ChatText
from .conversation import ASSISTANT, SYSTEM, Conversation
from .token_offsets import Control, Encoder, Encoding

EMPTY_THINKING = re.compile(r"\s*(?:<(think|thinking|thought)>\s*</\1>|\[(THINK)\]\s*\[/\2\])\s*")
"""What templates write themselves before an answer without thinking."""


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


class Turns:
    """Finds what is learnt in texts of one tokenizer's templates."""

    def __init__(self, template: ChatTemplate, encoder: Encoder, config: ChatConfig) -> None:
        self.encoder, self.config, self.forms = encoder, config, Forms(template, encoder, config)

    def learnt(self, conversation: Conversation, text: ChatText, encoding: Encoding) -> tuple[np.ndarray, set[int]]:
        """Which characters are learnt, and the places of the tokens among them that end turns.

        Raises:
            ValueError: they cannot be told exactly.
        """
        chat = Chat(conversation, text, encoding, self.forms.of(conversation))
        if self.config.loss == "all":
            ends = {each.place for each in encoding.controls if each.token == chat.form.stop}
            return np.ones(len(text.text), bool), ends
        learnt, stops = np.zeros(len(text.text), bool), set[int]()
        for number in self._chosen(conversation):
            start, end, stop = self._region(chat, number)
            if chat.form.marks and conversation.messages[number]["role"] == ASSISTANT:
                marked = text.generated & (text.turn == number)
                learnt |= marked
                if stop is None or not (marked.any() or not len(text.own(number))):
                    continue
                start = stop.start
            learnt[start:end] = True
            if stop is not None:
                stops.add(stop.place)
        return learnt, stops

    def _chosen(self, conversation: Conversation) -> Iterator[int]:
        """Numbers of the messages that are learnt."""
        roles = self.config.roles if self.config.loss == "roles" else [ASSISTANT]
        numbers = [number for number, message in enumerate(conversation.messages) if message["role"] in roles]
        if self.config.loss == "completions":
            if not any(conversation.completion):
                raise ValueError("it has no column completion, which alone is learnt with data.chat.loss=completions")
            numbers = [number for number in numbers if conversation.completion[number]]
        if self.config.loss == "last":
            numbers = numbers[-1:]
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
        stop = self._stop(chat, said, end)
        # Without such a token, white space at the end belongs to the template.
        last = stop.end if stop else max(start, said, begin + len(text.text[begin:end].rstrip()))
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
        stop = self._stop(chat, end, int(whole[-1]) + 1) if len(whole) and whole[-1] >= end else None
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

    def _stop(self, chat: Chat, start: int, end: int) -> Control | None:
        """The token that ends a turn, between ``start`` and ``end`` or right behind."""
        text, form, named = chat.text, chat.form, self.encoder.stops
        found = own_controls(chat.encoding, text, start, end)
        usual = [each for each in found if each.token == form.stop]
        if found:
            return usual[0] if usual else found[-1]
        behind = next((each for each in chat.encoding.controls if each.start >= end), None)
        if behind is None or text.text[end : behind.start].strip() or text.message[behind.start] >= 0:
            return None
        # Behind the last turn, templates may write the end of the text.
        return behind if behind.token in (named if text.turn[behind.start] >= 0 else self.encoder.ends) else None


def _refuse_others(text: ChatText, start: int, end: int, number: int) -> None:
    part = text.message[start:end]
    if len(others := np.unique(part[(part >= 0) & (part != number) & text.spoken[start:end]])):
        raise ValueError(f"the template writes message {int(others[0]) + 1} into the turn of message {number + 1}")
