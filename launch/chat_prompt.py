"""Build the conversation for ``trireme generate --chat`` from a file of messages, a prompt, or both, and tokenize it.
Also find the tokens at which an answer ends.

Messages may contain images and audio clips if the model accepts them: from the file's messages, or from files given by
``--image`` and ``--audio``.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Problem, UserError
from ..models.json_file import parse_json
from ..trainer.data.chat.conversation import ASSISTANT, Conversation, content_parts, conversation_of
from ..trainer.data.chat.media import AUDIO, IMAGE, KINDS, Kind, items_of_column, kind_of, media_of, named
from .generation_limits import check_text

if TYPE_CHECKING:
    from ..trainer.data.chat.chat_config import ChatConfig

FORM = 'write a list of messages, [{"role": "user", "content": "..."}], or an object with messages and perhaps tools'


@dataclass(frozen=True)
class ChatPrompt:
    """A conversation, and how the model continues it."""

    conversation: Conversation
    continues: bool
    """Whether it goes on with the last message; else it begins a message of its own."""
    images: tuple[Any, ...] = ()
    """The images of its messages in their order, opened by Pillow."""
    audio: tuple[Any, ...] = ()
    """The audio clips of its messages in their order, each as samples with their rate."""

    @property
    def media(self) -> dict[Kind, list[Any]]:
        """The images and audio clips by their kind, without kinds that the conversation lacks."""
        return {kind: [*each] for kind, each in ((IMAGE, self.images), (AUDIO, self.audio)) if each}

    @property
    def begun(self) -> str:
        """The beginning of the message that the model continues; empty if it begins a new message."""
        content = self.conversation.messages[-1].get("content", "") if self.continues else ""
        if isinstance(content, list):
            return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        return str(content)


def chat_prompt(
    file: str | None,
    prompt: str | None,
    system: str | None = None,
    continue_final_message: bool = False,
    generation_prompt: bool | None = None,
    images: Sequence[str] = (),
    trained: ChatConfig | None = None,
    audio: Sequence[str] = (),
) -> ChatPrompt:
    """Build the conversation that a command describes.

    Args:
        file: JSON with messages, or with a row as ``data=chat`` reads it; ``-`` reads standard input.
        prompt: a further message of the user.
        system: message of the system for a conversation without one.
        continue_final_message: go on with the last message.
        generation_prompt: begin a new message; None does so unless the last one is the assistant's.
        images: files of images, which stand before ``prompt``. Without a prompt, they are for the images in the
            messages of ``file`` that name no file of their own.
        trained: ``data.chat`` of the recipe that trained the model. Its system message, tools and template arguments
            are taken where the conversation has none of its own.
        audio: files of audio clips; they are used in the same way as ``images``.

    Raises:
        UserError: there is no such file, it holds no conversation, image or audio clip, or the options contradict each
            other.
    """
    if continue_final_message and generation_prompt:
        why = "continues the last message, but --add-generation-prompt begins a new one"
        raise UserError(Problem("--continue-final-message", why, "leave one of them out"))
    if prompt is not None and not prompt.strip() and not images and not audio:
        raise UserError(Problem("--prompt", "is empty", "write what the user asks, or leave it out", prompt))
    for option, text in (("--prompt", prompt), ("--system", system)):
        check_text(option, text)
    files = {IMAGE: images, AUDIO: audio}
    row = _asked(_row(file) if file else {"messages": []}, prompt, files)
    check_text("--chat", row)
    if not row.get("messages") and not row.get("conversations"):
        fix = "name a file with messages, or give --prompt"
        raise UserError(Problem("--chat", "needs a message to answer", fix))
    try:
        found = _conversation(row, system, trained)
        for number, message in enumerate(found.messages):
            content_parts(message, number, KINDS)
    except ValueError as error:
        raise UserError(Problem("--chat", f"is not a conversation: {error}", FORM, file)) from error
    last = found.messages[-1]["role"]
    if continue_final_message and not isinstance(found.messages[-1].get("content"), str):
        raise UserError(Problem("--continue-final-message", "needs a last message whose content is a text", FORM))
    # As in pipelines of transformers, a last message of the assistant is the beginning of its answer.
    goes_on = continue_final_message or (generation_prompt is None and last == ASSISTANT)
    folder = str(Path(os.path.expanduser(file)).resolve().parent) if file and file != "-" else None
    return ChatPrompt(found, goes_on, *(tuple(_opened(found, row, kind, files[kind], folder)) for kind in KINDS))


def trained_chat(model: str) -> ChatConfig | None:
    """The section ``data.chat`` in the recipe of a run or checkpoint; None if there is no recipe or no such section.

    Raises:
        UserError: the recipe cannot be read.
    """
    from ..models.locate import import_from
    from ..trainer.checkpoint.layout import RECIPE
    from ..trainer.data.chat.chat_config import ChatConfig
    from ..trainer.run_folder import saved_recipe

    folder = Path(os.path.expanduser(model))
    data = saved_recipe(folder).get("data") if (folder / RECIPE).is_file() else None
    chat = data.get("chat") if isinstance(data, dict) else None
    if not isinstance(chat, dict):
        return None
    import_from(Path.cwd())  # tools may be functions of the user's
    known = {field.name for field in dataclasses.fields(ChatConfig)}
    return ChatConfig(**{name: value for name, value in chat.items() if name in known})


def _conversation(row: dict[str, Any], system: str | None, trained: ChatConfig | None) -> Conversation:
    """The conversation of a row, completed as in training."""
    if trained is None:
        return conversation_of(row, system)
    from ..trainer.data.chat.tools import tool_schemas

    as_text = trained.tool_arguments == "text"
    system = trained.system if system is None else system
    found = conversation_of(row, system, tool_schemas(trained.tools), as_text, trained.role_names)
    return dataclasses.replace(found, template_args={**trained.template_args, **found.template_args})


def _asked(row: dict[str, Any], prompt: str | None, files: Mapping[Kind, Sequence[str]]) -> dict[str, Any]:
    """Add a message of the user, images and audio clips to a row."""
    files = {kind: [os.path.abspath(os.path.expanduser(file)) for file in each] for kind, each in files.items()}
    if prompt is None:
        given = {kind.column: [*items_of_column(row, kind), *each] for kind, each in files.items() if each}
        return {**row, **given}
    shown = [{"type": kind.name, "path": file} for kind, each in files.items() for file in each]
    content = [*shown, {"type": "text", "text": prompt}] if shown else prompt
    name = "conversations" if row.get("conversations") and not row.get("messages") else "messages"
    return {**row, name: [*(row.get(name) or []), {"role": "user", "content": content}]}


def _opened(
    found: Conversation, row: dict[str, Any], kind: Kind, files: Sequence[str], media_folder: str | None
) -> list[Any]:
    """Open the images or audio clips of a conversation."""
    contents = [message.get("content") for message in found.messages]
    if not row.get(kind.column) and not any(
        kind_of(part) is kind for each in contents if isinstance(each, list) for part in each
    ):
        return []
    from ..trainer.data.audio import decoded
    from ..trainer.data.image_rows import opened_image

    option = f"--{kind.name}" if files else "--chat"
    try:
        stored = media_of(found.messages, row, kind, media_folder)
        if kind is IMAGE:
            return [opened_image(each, 3) for each in stored]
        return [dict(zip(("array", "sampling_rate"), decoded(each), strict=True)) for each in stored]
    except ImportError:
        raise UserError(Problem(option, "needs Pillow, which is not installed", "pip install pillow")) from None
    except ValueError as error:
        fix = f"name one file for each {kind.one} of the messages, or give --prompt with --{kind.name}"
        raise UserError(Problem(option, str(error), fix)) from error


def _row(file: str) -> dict[str, Any]:
    try:
        text = sys.stdin.read() if file == "-" else Path(os.path.expanduser(file)).read_text(encoding="utf-8")
        value = parse_json(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(Problem("--chat", f"cannot be read: {reason}", FORM, file)) from error
    except ValueError as error:
        raise UserError(Problem("--chat", f"is not valid JSON: {error}", FORM, file)) from error
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
    return _rendered(tokenizer, chat, return_dict=True, return_tensors="pt", tokenizer_kwargs=PLAIN)


def media_inputs(processor: Any, model: Any, chat: ChatPrompt) -> Any:
    """Tokens of a conversation with its images and audio clips, made as in training.

    The template writes one placeholder token for each image and clip. The processor replaces it by the tokens that the
    image or clip stands for.

    Args:
        processor: a processor of transformers that reads the conversation's kinds of media.

    Raises:
        UserError: there is no template, the template refuses the conversation or leaves out an image or clip, or the
            processor refuses one of these.
    """
    from ..trainer.data.chat.media_encoder import BESIDE, item_tokens, opened, processed, refuse_tokenless, token_of

    text = _rendered(processor.tokenizer, chat, tokenize=False)
    for kind, items in chat.media.items():
        token = token_of(processor, kind)
        if (shown := text.count(token)) != len(items):
            why = f"holds {len(items)} {kind.many}, and the template shows {shown} ({token})"
            raise UserError(Problem("--chat", why, "correct the messages; a text may not hold that token"))
    try:
        media = {kind: [opened(processor, kind, each) for each in items] for kind, items in chat.media.items()}
        for kind, items in media.items():
            for item in items:
                refuse_tokenless(processor, kind, item_tokens(processor, kind, item))
        made = processed(processor, text, media)
    except ValueError as error:
        option = f"--{next(iter(chat.media)).name}" if len(chat.media) == 1 else "--chat"
        raise UserError(Problem(option, str(error), f"give other {named([*chat.media])}")) from error
    for name in set(BESIDE) - set(inspect.signature(model.forward).parameters):
        made.pop(name, None)
    return made


PLAIN = {"return_token_type_ids": False, "split_special_tokens": False}


def _fitted(tokenizer: Any, chat: ChatPrompt) -> Conversation:
    """The conversation with contents of the kind that the template takes: some templates take only lists of parts, and
    leave out a content that is a text."""
    from ..trainer.data.chat.chat_config import ChatConfig
    from ..trainer.data.chat.chat_encoder import ChatEncoder

    try:
        encoder = ChatEncoder(tokenizer, ChatConfig())
        encoder.media = tuple(chat.media)
        return encoder.fitted(chat.conversation)
    except (ValueError, UserError) as error:
        if chat.media:
            raise UserError(
                Problem("--chat", f"cannot be shown to this model: {error}", "correct the messages")
            ) from error
        return chat.conversation  # the template may still take it


def _rendered(tokenizer: Any, chat: ChatPrompt, **form: Any) -> Any:
    """The conversation as the template renders it: a text, or tokens."""
    if tokenizer.chat_template is None:
        fix = "train with data=chat, which writes the template beside the weights, or give --prompt without --chat"
        raise UserError(Problem("--chat", "the model's tokenizer has no chat template", fix))
    found = _fitted(tokenizer, chat)
    try:
        return tokenizer.apply_chat_template(
            found.messages,
            tools=found.tools,
            documents=found.documents,
            add_generation_prompt=not chat.continues,
            continue_final_message=chat.continues,
            **form,
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
