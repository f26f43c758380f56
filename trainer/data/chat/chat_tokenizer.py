"""Prepare a tokenizer for chats: load or train it, set the chat template, add its control tokens, and use an added stop
token as EOS.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ....models.vocabulary import Vocabulary
from ..content_stamp import hash_json
from ..samples import Given
from ..text_values import vocabulary_of
from ..tokenizer import SMALLEST_VOCABULARY, load_or_train, load_tokenizer
from .answer_form import Forms
from .chat_config import ChatConfig
from .chat_text import ChatTemplate, written_template
from .conversation import COLUMNS, Conversation
from .named_templates import USUAL, named_among, named_template
from .token_offsets import Encoder

log = logging.getLogger("trireme.data")


def chat_tokenizer(given: Given, chat: ChatConfig, texts: Callable[[], Iterable[str]] | None = None) -> Any:
    """The tokenizer that the recipe names, that of the weights, or one trained on the train conversations.

    Args:
        texts: gives the texts to train a tokenizer on; None takes the texts in the conversations of the rows.

    Raises:
        UserError: there is none, or its template is not usable.
    """
    config = given.config.tokenizer
    if config.path is not None:
        return prepared_tokenizer(load_tokenizer(config.path), chat)
    if given.weights is not None:
        return prepared_tokenizer(load_tokenizer(str(given.weights), "model.weights"), chat)
    template = written_template(chat) or named_template(USUAL).text
    wanted = control_tokens(chat, template)
    if config.kind != "bpe":  # others have no token that begins a text, or ends it
        wanted += [token for named in named_among(template) for token in (named.bos, named.eos) if token is not None]
    # The control tokens are added to those that are trained, so that both together are as many as the recipe says.
    least = SMALLEST_VOCABULARY if config.kind == "bpe" else 1
    smaller = replace(config, vocab_size=max(config.vocab_size - len(wanted), least))
    name = hash_json([given.print, "chats"])
    trained = load_or_train(smaller, texts or (lambda: texts_of_chats(given.rows, chat)), name, str(given.cache))
    return prepared_tokenizer(trained, chat, trained=True)


def prepared_tokenizer(tokenizer: Any, chat: ChatConfig, trained: bool = False) -> Any:
    """A copy of ``tokenizer`` with the template and the control tokens of the recipe.

    Raises:
        UserError: the template is not usable.
    """
    tokenizer, written = copy.deepcopy(tokenizer), written_template(chat)
    own = tokenizer.chat_template
    if written is not None and own is not None and written != own:
        log.warning("the tokenizer has a chat template of its own, and data.chat.template replaces it")
    tokenizer.chat_template = _named_first(written or own or named_template(USUAL).text, chat.template_name)
    if written is None and own is None and not trained:
        log.warning("the tokenizer has no chat template, so ChatML is taken; data.chat.template names another one")
    added = add_control_tokens(tokenizer, control_tokens(chat, tokenizer.chat_template))
    _add_ends(tokenizer)
    tokenizer.split_special_tokens = False  # the template's control tokens are tokens
    _end_by_stop(tokenizer, chat, added)
    return tokenizer


def _named_first(template: str | dict[str, str], name: str | None) -> str | dict[str, str]:
    """``template`` with the one called ``name`` also as the default of transformers, so that a model is asked in the
    template with which it was trained."""
    if name is None or not isinstance(template, dict) or name not in template:
        return template
    return {**template, **dict.fromkeys({"default"} | ({"tool_use"} & template.keys()), template[name])}


def control_tokens(chat: ChatConfig, template: str | Mapping[str, str]) -> list[str]:
    """Control tokens that a recipe asks for, with those of the templates that it names."""
    own = [token for named in named_among(template) for token in named.tokens]
    return list(dict.fromkeys([*own, *chat.control_tokens]))


def _add_ends(tokenizer: Any) -> None:
    """Set a missing ``bos_token`` or ``eos_token`` to the one that the named template writes."""
    for named in named_among(tokenizer.chat_template):
        for name, token in (("bos_token", named.bos), ("eos_token", named.eos)):
            if token is not None and getattr(tokenizer, name) is None:
                add_control_tokens(tokenizer, [token])
                setattr(tokenizer, name, token)


def add_control_tokens(tokenizer: Any, tokens: Sequence[str]) -> list[str]:
    """Add those of ``tokens`` that are no special tokens yet; returns them."""
    from tokenizers import AddedToken

    special = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    new = [token for token in tokens if token not in special]
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in new], special_tokens=True)
    return new


def _end_by_stop(tokenizer: Any, chat: ChatConfig, added: Sequence[str]) -> None:
    """If the recipe adds the end-of-turn token, make it the end-of-text token, at which generation stops."""
    stop = stop_token(tokenizer, chat)
    if stop is not None and tokenizer.convert_ids_to_tokens(stop) in added:
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(stop)


def stop_token(tokenizer: Any, chat: ChatConfig) -> int | None:
    """The token with which the template ends an answer; None if it ends none by a token, or cannot be tried."""
    template = ChatTemplate(tokenizer, chat)
    try:
        return Forms(template, Encoder(tokenizer), chat).of(Conversation([], [], [])).stop
    except ValueError:
        return None


def chat_vocabulary(tokenizer: Any, chat: ChatConfig | None) -> Vocabulary:
    """Size and special tokens of a tokenizer, with the one that ends an answer of a chat; None stands for no chats."""
    stop = None if chat is None else stop_token(tokenizer, chat)
    return replace(vocabulary_of(tokenizer), stop=stop)


def texts_of_chats(rows: Any, chat: ChatConfig) -> Iterator[str]:
    """The texts in messages, tools and documents of the rows, to train a tokenizer on."""
    from .conversation import conversation_of

    present = [name for name in COLUMNS if name in rows.column_names]
    for batch in rows.select_columns(present).iter(batch_size=256):
        for values in zip(*batch.values(), strict=True):
            try:
                found = conversation_of(dict(zip(batch, values, strict=True)), chat.system)
            except ValueError:  # reported when the row is encoded
                continue
            yield from texts_inside([found.messages, found.tools, found.documents])


def texts_inside(value: Any) -> Iterator[str]:
    """All texts in lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from texts_inside(each)
    elif isinstance(value, list):
        for each in value:
            yield from texts_inside(each)
