"""The dataclass of ``data.chat`` in a recipe: the chat template, which tokens of a conversation have labels, and what
becomes of rows that cannot be used.

This file imports nothing heavy, since every command reads it.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from ....errors import refuse

SAMPLES = "trireme.trainer.data.chat.chat_rows.Chats"
"""Dotted path of the ``Samples`` that are made of chats."""
KEY = "data.chat"


@dataclass
class ChatConfig:
    """How conversations become texts, and which of their tokens are learnt."""

    template: Any = None
    """Jinja template: its text, a file that holds it, the name of one that comes with trireme (``chatml``, ``llama3``
    ...: docs/chat.md), or several by their names (``{default: ..., tool_use: ...}``). Null takes the tokenizer's own,
    or ChatML with a warning if it has none."""
    template_name: str | None = None
    """Name of the template to take among several, such as rag; null takes ``tool_use`` for rows with tools where there
    is one, else ``default``, as transformers does."""
    template_args: dict[str, Any] = field(default_factory=dict)
    """Further variables of the template, such as ``enable_thinking``; a row's own stand in its column
    ``template_args``."""
    loss: Literal["assistant", "last", "completions", "roles", "all"] = "assistant"
    """Tokens that are learnt: the turns of the assistant, its last turn, the column ``completion``, the turns of
    ``roles``, or every token. A message with ``train: false`` (or ``weight: 0``) is not learnt, except by ``all``; one
    with ``train: true`` is learnt by ``assistant`` and ``roles``, whoever says it."""
    roles: list[str] = field(default_factory=list)
    """Roles that are learnt with ``loss=roles``, by the names of the rows (human) or of the template (user)."""
    system: str | None = None
    """System message for conversations that have none."""
    tools: list[Any] = field(default_factory=list)
    """Tools for rows without a column ``tools``: JSON schemas, or dotted paths of Python functions with type hints and
    a docstring in Google's style, from which transformers makes the schemas."""
    tool_arguments: Literal["object", "text"] = "object"
    """How templates get the arguments of calls; text suits templates that join them to other texts."""
    role_names: dict[str, str] = field(default_factory=dict)
    """Role in the data -> role that the template knows, beside the usual ones (human, gpt, ai, bot, observation,
    OpenAI's former function ...). ``{narrator: narrator}`` admits a role that is not known otherwise."""
    control_tokens: list[str] = field(default_factory=list)
    """Tokens that are added to the tokenizer as special ones; with ``model.weights``, the model then needs
    ``model.resize_embeddings``. Those of a template that is named are added with it."""
    stop_tokens: list[str] = field(default_factory=list)
    """Tokens that end a turn, if the template does not show them; they may also be tokens that begin the next turn."""
    unusable: Literal["refuse", "leave_out"] = "refuse"
    """Treatment of rows whose labels cannot be determined exactly: they end the run, or are left out and counted."""
    unseen: Literal["refuse", "allow"] = "refuse"
    """Treatment of rows with a message or tools that the template leaves out: unusable, or trained on without them."""
    too_long: Literal["cut", "drop", "refuse"] = "cut"
    """Rows of more than ``data.block_size`` tokens are cut at the end, dropped, or refused; each is counted."""
    learn_empty_thinking: bool = False
    """Learn empty thinking that a template writes by itself (``<think>`` and its end), too."""
    media_folder: str | None = None
    """Folder in which relative paths of images and audio clips begin; null takes the folder of the file that names
    them. A path that is not there is looked for in the working folder."""
    date: str = "2026-01-01"
    """Day (YYYY-MM-DD) that templates write as today's, so that samples stay the same tomorrow."""

    def __post_init__(self) -> None:
        refuse(self._flaws())

    def _flaws(self) -> Iterator[str]:
        if self.loss == "roles" and not self.roles:
            yield "roles=[] is wrong with loss=roles because nothing would be learnt; name some, such as [assistant]"
        if self.roles and self.loss != "roles":
            yield f"roles={self.roles!r} has no effect with loss={self.loss}; set loss=roles, or leave it out"
        if not isinstance(self.template, str | dict | None):
            yield f"template={self.template!r} is not a text; write the template, its file, or several by their names"
        several = self.template if isinstance(self.template, dict) else {"default": ""}
        if not several or not all(isinstance(one, str) for pair in several.items() for one in pair):
            yield f"template={self.template!r} is wrong; write several as {{default: TEXT_OR_FILE, tool_use: ...}}"
        for tool in self.tools:
            if not isinstance(tool, str | dict):
                yield f"tools={tool!r} is not a tool; write a JSON schema, or the dotted path of a function"
        try:
            datetime.date.fromisoformat(self.date)
        except ValueError:
            yield f"date={self.date!r} is not a day; write it as 2026-01-31"
