"""Read a recipe's chat template, render conversations with it, and record which message each character of the text
comes from.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError, UndefinedError
from transformers.utils.chat_template_utils import _compile_jinja_template

from ....errors import Problem, UserError
from .chat_config import KEY, ChatConfig
from .conversation import Conversation
from .messages import REASONING, Message
from .named_templates import named_template, template_names
from .traced_template import Turn, traced_rendering, tracing_template
from .traced_text import ELSEWHERE, Mark, Traced

NAMES = ("role", "name")
"""Fields of a message that name its author."""
TEMPLATE = f"{KEY}.template"
FAILURES = (
    *(TemplateError, TypeError, ValueError, LookupError, AttributeError, ArithmeticError),
    *(MemoryError, RuntimeError, AssertionError),
)
"""What a template may raise; jinja2's sandbox raises ``OverflowError`` for long ranges."""


@dataclass(frozen=True)
class ChatText:
    """The text of a conversation; arrays have one value per character."""

    text: str
    turn: np.ndarray
    """Message at which the template stood when it wrote the character; -1 where there is none."""
    message: np.ndarray
    """Message that it was copied from; ``ELSEWHERE`` for tools and such, ``ELSEWHERE - 1`` for the template's own."""
    spoken: np.ndarray
    """Whether it was copied from the content of the message, not from its role or name."""
    generated: np.ndarray
    """Whether it stands in a block ``{% generation %}``."""
    shown: frozenset[tuple[int, str]]
    """Messages and their fields of which the text shows anything; tools and documents are fields of ``ELSEWHERE``."""

    def own(self, number: int) -> np.ndarray:
        """Places of the characters that are copied from the content of a message."""
        return np.flatnonzero((self.message == number) & self.spoken)

    @cached_property
    def solid(self) -> np.ndarray:
        """Which characters are no white space."""
        return np.fromiter((not sign.isspace() for sign in self.text), bool, len(self.text))


class ChatTemplate:
    """The template, or templates, of a tokenizer."""

    def __init__(self, tokenizer: Any, config: ChatConfig) -> None:
        """
        Args:
            tokenizer: has one or several templates in ``chat_template``.
        """
        self.tokenizer, self.config = tokenizer, config
        self.today = datetime.date.fromisoformat(config.date)

    def chosen(self, tools: Any) -> str:
        """The template for a row, by the rules of transformers."""
        name, every = self.config.template_name, self.tokenizer.chat_template
        if name is not None and not (isinstance(every, dict) and name in every):
            known = ", ".join(every) if isinstance(every, dict) else "one without a name"
            fix = "leave it out, or name one of them"
            raise UserError(Problem(f"{KEY}.template_name", f"there is no such template; there is {known}", fix, name))
        try:
            return self.tokenizer.get_chat_template(name, tools)
        except ValueError as error:  # several templates, none of them the default
            why = f"is needed, since no template is called default: there is {', '.join(every)}"
            raise UserError(Problem(f"{KEY}.template_name", why, "name one of them", name)) from error

    def text(self, conversation: Conversation, generation_prompt: bool = False) -> ChatText:
        """The text of a conversation, and where each character comes from.

        It is rendered twice, plainly and traced, and both must agree.

        Raises:
            ValueError: the template refuses the conversation, or its text cannot be followed.
        """
        template = self.chosen(conversation.tools)
        given = {
            "messages": [_plain(message) for message in conversation.messages],
            "tools": conversation.tools,
            "documents": conversation.documents,
            "add_generation_prompt": generation_prompt,
        }
        further = {**self.tokenizer.special_tokens_map, "strftime_now": self._date}
        further |= {**self.config.template_args, **conversation.template_args}
        try:
            traced = {**given, "messages": [_turn(message, number) for number, message in enumerate(given["messages"])]}
            for name in ("tools", "documents"):
                traced[name] = _traced(given[name], Mark(ELSEWHERE, name))
            plain = _compile_jinja_template(template).render(**{**further, **given})
            found = traced_rendering(template, {**further, **traced})
        except FAILURES as error:
            why = f"the template refuses it: {' '.join(str(error).split()) or type(error).__name__}"
            if isinstance(error, TypeError) and any("tool_calls" in message for message in conversation.messages):
                why += f" (perhaps it takes the arguments of calls as {self._other_arguments()})"
            if isinstance(error, UndefinedError) and any("content" not in each for each in conversation.messages):
                why += " (a message has calls of tools and no content; data.chat.template names a template for them)"
            raise ValueError(why) from error
        if found != plain:
            raise ValueError("the template does something to texts that cannot be followed from message to text")
        return _chat_text(found)

    def _other_arguments(self) -> str:
        other = "text" if self.config.tool_arguments == "object" else "object"
        return f"{other}: {KEY}.tool_arguments={other}"

    def _date(self, form: str) -> str:
        return self.today.strftime(form)


def _plain(message: Message) -> Message:
    """A message as transformers shows it to templates: thinking stands under both of its names."""
    thinking = next((message[name] for name in REASONING if message.get(name) is not None), None)
    return message if thinking is None else {"thinking": thinking, **message, "reasoning_content": thinking}


def _turn(message: Message, number: int) -> Turn:
    turn = Turn({name: _traced(value, Mark(number, name)) for name, value in message.items()})
    turn.number = number
    return turn


def _traced(value: Any, mark: Mark) -> Any:
    if isinstance(value, str):
        return Traced(value, [(len(value), mark)])
    if isinstance(value, Mapping):
        return {name: _traced(each, mark) for name, each in value.items()}
    return [_traced(each, mark) for each in value] if isinstance(value, list | tuple) else value


def _chat_text(found: str) -> ChatText:
    found = found if isinstance(found, Traced) else Traced(found)
    sizes = [size for size, _ in found.spans]
    marks = [mark for _, mark in found.spans]

    def each(values: list[Any], kind: Any) -> np.ndarray:
        return np.repeat(np.array(values, kind), sizes) if sizes else np.zeros(0, kind)

    return ChatText(
        str.__str__(found),
        turn=each([-1 if mark.turn is None else mark.turn for mark in marks], np.int32),
        message=each([ELSEWHERE - 1 if mark.message is None else mark.message for mark in marks], np.int32),
        spoken=each(
            [(mark.message or 0) >= 0 and mark.message is not None and mark.field not in NAMES for mark in marks], bool
        ),
        generated=each([mark.generated for mark in marks], bool),
        shown=frozenset((mark.message, mark.field) for mark in marks if mark.message is not None),
    )


def written_template(config: ChatConfig) -> str | dict[str, str] | None:
    """The template of the recipe: read from its file, or several by their names; None if it names none.

    Raises:
        UserError: there is no such file, or it is no template.
    """
    if config.template is None:
        return None
    if isinstance(config.template, str):
        return _read(config.template, TEMPLATE)
    return {name: _read(value, f"{TEMPLATE}.{name}") for name, value in config.template.items()}


def _read(value: str, field: str) -> str:
    if value in template_names():
        return named_template(value).text
    path = Path(os.path.expanduser(value)) if "{" not in value and "\n" not in value else None
    if path is not None:
        try:
            value = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            names = ", ".join(template_names())
            fix = (
                f"write the template itself, which holds {{{{ ... }}}} or {{% ... %}}, a file of it, or one of: {names}"
            )
            raise UserError(Problem(field, f"cannot be read: {reason}", fix, str(path))) from error
    check_syntax(value, field)
    return value


def check_syntax(template: str, field: str) -> None:
    """Refuse what is no Jinja template.

    Raises:
        UserError: it cannot be compiled.
    """
    try:
        tracing_template(template)
    except TemplateError as error:
        line = f" (line {error.lineno})" if getattr(error, "lineno", None) else ""  # type: ignore[attr-defined]
        raise UserError(Problem(field, f"is not a Jinja template: {error}{line}", "correct it")) from error
