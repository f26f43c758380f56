"""The conversation that ``trireme generate --chat`` goes on with: messages of a file, a prompt, or both, as tokens."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from ..models.json_file import parse_json
from ..trainer.data.chat.conversation import ASSISTANT, Conversation, conversation_of

FORM = 'write a list of messages, [{"role": "user", "content": "..."}], or an object with messages and perhaps tools'


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, and how the model goes on with it."""

    conversation: Conversation
    continues: bool
    """Whether it goes on with the last message; else it begins a message of its own."""

    @property
    def begun(self) -> str:
        """What stands before the text that the model writes, in the message that it goes on with."""
        content = self.conversation.messages[-1].get("content", "")
        return str(content) if self.continues else ""


def chat_prompt(
    file: str | None,
    prompt: str | None,
    system: str | None = None,
    continue_final_message: bool = False,
    generation_prompt: bool | None = None,
) -> ChatPrompt:
    """The conversation of a command.

    Args:
        file: JSON with messages, or with a row as ``data=chat`` reads it; ``-`` reads standard input.
        prompt: a further message of the user.
        system: message of the system for a conversation without one.
        continue_final_message: go on with the last message.
        generation_prompt: begin a new message; None does so unless the last one is the assistant's.

    Raises:
        UserError: there is no such file, it holds no conversation, or the options contradict each other.
    """
    if continue_final_message and generation_prompt:
        why = "goes on with the last message, and --add-generation-prompt begins a new one"
        raise UserError(Problem("--continue-final-message", why, "leave one of them out"))
    row: dict[str, Any] = _row(file) if file else {"messages": []}
    if prompt is not None:
        row = {**row, "messages": [*(row.get("messages") or []), {"role": "user", "content": prompt}]}
    if not row.get("messages") and not row.get("conversations"):
        fix = "name a file with messages, or give --prompt"
        raise UserError(Problem("--chat", "needs a message to answer", fix))
    try:
        found = conversation_of(row, system)
    except ValueError as error:
        raise UserError(Problem("--chat", f"is no conversation: {error}", FORM, file)) from error
    last = found.messages[-1]["role"]
    if continue_final_message and not isinstance(found.messages[-1].get("content"), str):
        raise UserError(Problem("--continue-final-message", "needs a last message with a content", FORM))
    # As pipelines of transformers do: a message of the assistant at the end is its beginning.
    return ChatPrompt(found, continue_final_message or (generation_prompt is None and last == ASSISTANT))


def _row(file: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(os.path.expanduser(file)).read_text(encoding="utf-8")
        value = parse_json(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(Problem("--chat", f"cannot be read: {reason}", FORM, file)) from error
    except ValueError as error:
        raise UserError(Problem("--chat", f"holds no JSON: {error}", FORM, file)) from error
    if isinstance(value, list):
        return {"messages": value}
    if not isinstance(value, dict):
        raise UserError(Problem("--chat", f"holds {type(value).__name__}, not messages", FORM, file))
    return value


def chat_inputs(tokenizer: Any, chat: ChatPrompt) -> Any:
    """Tokens of a conversation by the tokenizer's own template, for ``generate``.

    Raises:
        UserError: there is no template, or it refuses the conversation.
    """
    if tokenizer.chat_template is None:
        fix = "train with data=chat, which writes the template beside the weights, or give --prompt without --chat"
        raise UserError(Problem("--chat", "the model's tokenizer has no chat template", fix))
    found = chat.conversation
    try:
        return tokenizer.apply_chat_template(
            found.messages,
            tools=found.tools,
            documents=found.documents,
            add_generation_prompt=not chat.continues,
            continue_final_message=chat.continues,
            return_dict=True,
            return_tensors="pt",
            tokenizer_kwargs={"return_token_type_ids": False, "split_special_tokens": False},
            **found.template_args,
        )
    except Exception as error:  # templates raise errors of their own
        why = f"the template refuses the conversation: {' '.join(str(error).split())}"
        raise UserError(Problem("--chat", why, "correct the messages")) from error


def stops(tokenizer: Any, model: Any) -> list[int]:
    """Tokens at which an answer ends: those of the model and of the tokenizer, and the one that ends a turn."""
    from ..trainer.data.chat.chat_config import ChatConfig
    from ..trainer.data.chat.chat_tokenizer import stop_token

    named = getattr(model.generation_config, "eos_token_id", None)
    every = [*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id]
    return sorted({token for token in [*every, stop_token(tokenizer, ChatConfig())] if token is not None})
