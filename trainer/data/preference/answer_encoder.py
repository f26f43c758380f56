"""Encode the prompts and answers of preference data as tokens, with labels on the tokens of the answers only.

Conversations are encoded by their chat template, and plain texts without one. A conversation is encoded once for each
of its answers, like any other chat (``chat/chat_encoder.py``). A plain prompt and its answer are tokenized separately,
because the model also sees the prompt alone when it generates.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from ....models.loss import IGNORE
from ..chat.chat_config import ChatConfig
from ..chat.chat_encoder import ChatEncoder
from .preference_form import BESIDE, Answer, refuse_form

SIDES = ("first", "second")
"""The two texts of a sample."""
PARTS = tuple(f"{side}_{part}" for side in SIDES for part in ("ids", "labels"))
"""Columns with the tokens and labels of both texts."""
SAME = "its two answers are the same"
"""Why a pair teaches nothing; such rows are always left out."""


class Encoded(NamedTuple):
    """A prompt with an answer as tokens."""

    ids: np.ndarray
    labels: np.ndarray
    """The tokens of the answer, and -100 in place of the others."""
    ends: bool
    """Whether a token that ends a turn, or a text, is among the labels."""
    notes: tuple[str, ...] = ()


class AnswerEncoder:
    """Encodes answers by the template of a tokenizer, or as plain texts."""

    def __init__(self, tokenizer: Any, chat: ChatConfig | None) -> None:
        """
        Args:
            chat: None for plain texts.
        """
        self.tokenizer = tokenizer
        self.chat = None if chat is None else ChatEncoder(tokenizer, replace(chat, loss="completions"))

    @property
    def tools(self) -> Any:
        """JSON schemas of the tools that all conversations have."""
        return None if self.chat is None else self.chat.tools

    def pair(self, chosen: Answer, rejected: Answer) -> tuple[Encoded, Encoded]:
        """Both answers to one prompt.

        Raises:
            ValueError: labels cannot be told exactly, or both are the same.
        """
        for each in (chosen, rejected):
            refuse_form(each, self.chat is not None)
        if chosen["prompt"] is None:
            found = self._behind_common(chosen, rejected)
        else:
            found = self.answer(chosen), self.answer(rejected)
        if np.array_equal(found[0].ids, found[1].ids):
            raise ValueError(SAME)
        return found

    def answer(self, given: Answer) -> Encoded:
        """A prompt with its answer.

        Raises:
            ValueError: the labels cannot be told exactly.
        """
        prompt, completion = given["prompt"], given["completion"]
        if self.chat is not None:
            found = self.chat(given)
            return Encoded(found.input_ids, found.labels, bool(found.stops), found.notes)
        refuse_form(given, False)
        begin = self._tokens(prompt, True)
        end = self._ended(self._tokens(completion, False))
        return _joined(begin, end, self.tokenizer.eos_token_id, _unread(given))

    def _behind_common(self, chosen: Answer, rejected: Answer) -> tuple[Encoded, Encoded]:
        """Encode two texts that begin with the prompt: the tokens after their common beginning get labels."""
        one, other = (self._ended(self._tokens(each["completion"], True)) for each in (chosen, rejected))
        pairs = enumerate(zip(one, other, strict=False))
        size = next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
        if not size:
            raise ValueError("it has no prompt, and its answers do not begin alike")
        eos = self.tokenizer.eos_token_id
        notes = _unread(chosen)
        return _joined(one[:size], one[size:], eos, notes), _joined(other[:size], other[size:], eos, notes)

    def _tokens(self, text: str, begins: bool) -> list[int]:
        """Tokens of a text, with the token that begins a text if the tokenizer writes one there."""
        plain = list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        if not begins:
            return plain
        found = list(self.tokenizer(text, verbose=False)["input_ids"])
        return found[: len(found) - _behind(found, plain)]  # some tokenizers also end every text

    def _ended(self, tokens: list[int]) -> list[int]:
        eos = self.tokenizer.eos_token_id
        return tokens if eos is None or tokens[-1:] == [eos] else [*tokens, eos]


def _unread(given: Answer) -> tuple[str, ...]:
    """Notes on columns beside a prompt that are not read without a chat template."""
    return tuple(f"the {name} is not read without data.chat" for name in BESIDE if given.get(name))


def _behind(found: list[int], plain: list[int]) -> int:
    """Number of tokens that a tokenizer has added after a text."""
    added = len(found) - len(plain)
    return next((added - before for before in range(added + 1) if found[before : before + len(plain)] == plain), 0)


def _joined(begin: list[int], end: list[int], eos: int | None, notes: tuple[str, ...]) -> Encoded:
    labels = np.array([IGNORE] * len(begin) + end, np.int64)
    return Encoded(np.array(begin + end, np.int64), labels, eos is not None and end[-1:] == [eos], notes)


def learnt_places(labels: np.ndarray) -> np.ndarray:
    """Places of the labels that are learnt. The first token is never one, since no token before it could predict it."""
    places = np.flatnonzero(labels != IGNORE)
    return places[places > 0]
