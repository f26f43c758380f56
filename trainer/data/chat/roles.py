"""Map role names in chat data (``human``, ``gpt`` ...) to the roles that templates know, and find unknown roles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

ROLES = {
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "ai": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "function": "tool",
}
"""Names of roles in published data (ShareGPT, OpenAssistant, Cohere, Gemini, ms-swift ...), and OpenAI's former one ->
roles that templates know."""
CALLS = ("function_call", "tool_call")
"""Role names of messages whose content is a tool call."""
KNOWN = ("system", "developer", "user", "assistant", "tool", "ipython")
"""Roles that templates know. Of others, a template knows those that it names."""


def role_of(name: str, own: Mapping[str, str] | None = None) -> str:
    """The role that templates know, for a role name in the data; an unknown name is returned unchanged.

    Args:
        own: names -> roles from the recipe (``data.chat.role_names``), which take precedence.
    """
    if own and name in own:
        return own[name]
    plain = _plain(name)
    return ROLES.get(plain, plain if plain in KNOWN else name)


def is_call(name: str) -> bool:
    """Whether the messages of a role are tool calls."""
    return _plain(name) in CALLS


def _plain(name: str) -> str:
    """A name in the spelling of this file; data sets also write ``User``, ``CHATBOT`` and ``function-call``."""
    return name.strip().lower().replace("-", "_")


def unknown_role(roles: Iterable[str], template: str, named: Iterable[str]) -> str | None:
    """The first role that neither templates in general, nor this one, nor the recipe knows.

    Args:
        template: its text; the roles that it compares with stand in quotes there.
        named: roles of the recipe.
    """
    known = {*KNOWN, *named}
    return next((role for role in roles if role not in known and not _named_in(template, role)), None)


def _named_in(template: str, role: str) -> bool:
    return re.search(rf"""(["']){re.escape(role)}\1""", template) is not None
