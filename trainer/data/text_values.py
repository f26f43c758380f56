"""Determine the values that trireme passes to text collators: tokenizer, block size, and the id of the padding token.
Functions here also find the tokenizer in a processor, and describe its vocabulary.
"""

from __future__ import annotations

from typing import Any

from ...models.vocabulary import Vocabulary
from .text_config import TextConfig


def tokenizer_in(processor: Any) -> Any:
    """The tokenizer in a processor, which may be one itself; None if there is none."""
    if hasattr(processor, "backend_tokenizer"):
        return processor
    return getattr(processor, "tokenizer", None)


def text_values(config: TextConfig, tokenizer: Any, vocabulary: Vocabulary | None = None) -> dict[str, Any]:
    """Values for collators of texts, by the names in ``text_config.GIVEN_OF_TEXTS``; a token id needs a tokenizer, or
    a ``vocabulary`` that is known without one."""
    values = {"block_size": config.block_size, "tokenizer": tokenizer}
    if tokenizer is not None:
        return {**values, "pad_token_id": pad_token_id(tokenizer)}
    return values if vocabulary is None else {**values, "pad_token_id": vocabulary.padding}


def vocabulary_of(tokenizer: Any) -> Vocabulary:
    """Size and special tokens of a tokenizer."""
    return Vocabulary(len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)


def pad_token_id(tokenizer: Any) -> int:
    """Token id for padding. Padding is masked and has no labels, so any id will do if the tokenizer has none."""
    known = (token for token in (tokenizer.pad_token_id, tokenizer.eos_token_id) if isinstance(token, int))
    return next(known, 0)
