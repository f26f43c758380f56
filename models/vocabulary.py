"""``Vocabulary``: the size and special tokens of the tokenizer that a model is built for. Functions choose a decoder's
first token, and refuse a tokenizer with more tokens than the model has embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import Problem


@dataclass(frozen=True)
class Vocabulary:
    """Size and special tokens of a tokenizer."""

    size: int
    """Number of tokens; every token id is below it."""
    bos: int | None = None
    eos: int | None = None
    pad: int | None = None
    stop: int | None = None
    """Token that ends an answer in a chat."""

    @property
    def ends(self) -> list[int]:
        """Tokens at which generation ends."""
        return list(dict.fromkeys(token for token in (self.eos, self.stop) if token is not None))

    @property
    def padding(self) -> int:
        """Token id for padding. Padding is masked and has no labels, so any id will do if there is none."""
        return next((token for token in (self.pad, self.eos) if token is not None), 0)


def decoder_start(config: Any, vocabulary: Vocabulary) -> int:
    """The token with which a decoder begins to write: that of the configuration, else the tokenizer's first token, its
    padding (as T5 does), or its last."""
    given = getattr(config, "decoder_start_token_id", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    if given is not None and given >= getattr(text, "vocab_size", given + 1):
        given = None  # the default of a larger vocabulary
    tokens = (given, vocabulary.bos, vocabulary.pad, vocabulary.eos)
    return next((token for token in tokens if token is not None), 0)


def too_few_embeddings(embeddings: int, tokens: int, weights: str | None) -> Problem:
    """The refusal of a tokenizer that has more tokens than the model has embeddings."""
    why = f"is smaller than the tokenizer's {tokens} tokens"
    fix = f"use at least {tokens}, or a tokenizer of at most {embeddings} tokens"
    if weights is not None:
        why = f"is smaller than the tokenizer's {tokens} tokens, and the weights hold no more embeddings"
        fix = "use the tokenizer that the weights were trained with, or set model.resize_embeddings=true"
    return Problem("model.config.vocab_size", why, fix, embeddings)
