"""Find which characters each token of a text covers, and label exactly the tokens that cover selected characters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ....errors import Problem, UserError
from ....models.loss import IGNORE
from .chat_config import KEY


class Control(NamedTuple):
    """A control token in a text."""

    start: int
    end: int
    """Characters from ``start`` to ``end`` (exclusive) are the token."""
    token: int
    place: int
    """Index of the token among all tokens of the text."""


@dataclass(frozen=True)
class Encoding:
    """Tokens of a text."""

    ids: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    """Characters of each token: from ``starts`` on, up to ``ends``."""
    controls: tuple[Control, ...]


class Encoder:
    """Encodes rendered texts. Control tokens written in a text stay control tokens, and no others are added."""

    def __init__(self, tokenizer: Any, stop_tokens: Sequence[str] = ()) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self.special = {number for number, token in added.items() if token.special} | set(tokenizer.all_special_ids)
        self.stops = set(map(self._id, stop_tokens))
        self.known = self.special | self.stops
        self.others = {number for number in added if number not in self.known}

    @cached_property
    def ends(self) -> set[int]:
        """Tokens that end a text."""
        return self.stops | ({self.tokenizer.eos_token_id} - {None})

    def _id(self, token: str) -> int:
        number = self.tokenizer.convert_tokens_to_ids(token)
        if number is None or number == self.tokenizer.unk_token_id:
            why, fix = "is not a token of the tokenizer", f"correct it, or add it: {KEY}.control_tokens"
            raise UserError(Problem(f"{KEY}.stop_tokens", why, fix, token))
        return number

    def __call__(self, text: str) -> Encoding:
        found = self.tokenizer(
            text,
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
            split_special_tokens=False,
            truncation=False,
            verbose=False,
        )
        ids = np.asarray(found["input_ids"], np.int64)
        offsets = np.asarray(found["offset_mapping"], np.int64).reshape(-1, 2)
        return Encoding(ids, offsets[:, 0], offsets[:, 1], tuple(self._controls(text, ids, offsets)))

    def _controls(self, text: str, ids: np.ndarray, offsets: np.ndarray) -> Iterator[Control]:
        known = self.known if np.isin(ids, list(self.known)).any() else self.others
        for place in np.flatnonzero(np.isin(ids, list(known))):
            start, end = (int(edge) for edge in offsets[place])
            part = text[start:end]  # some control tokens take the white space beside them
            start, end = start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
            if start < end:
                yield Control(start, end, int(ids[place]), int(place))


def labels_of(text: str, solid: np.ndarray, learnt: np.ndarray, encoding: Encoding) -> np.ndarray:
    """The tokens that are learnt, and ``IGNORE`` in place of the others.

    Args:
        solid: which characters are no white space.
        learnt: which characters are to be learnt.

    Raises:
        ValueError: a token joins such characters with others, or no token holds them.
    """
    starts, ends = encoding.starts, encoding.ends
    sums = {name: np.concatenate([[0], np.cumsum(part)]) for name, part in _parts(solid, learnt).items()}
    inside, solid_in, solid_out = (sums[name][ends] - sums[name][starts] for name in ("in", "solid in", "solid out"))
    whole = (inside == ends - starts) & (ends > starts)
    between = (ends == starts) & (starts > 0) & _at(learnt, starts - 1) & _at(learnt, starts)
    chosen = whole | between | ((solid_in > 0) & (solid_out == 0))
    for place in np.flatnonzero((solid_in > 0) & (solid_out > 0)):
        joined = text[starts[place] : ends[place]]
        raise ValueError(f"the token {joined!r} joins what is learnt with what is not")
    held = np.zeros(len(text) + 1, np.int64)
    np.add.at(held, starts[chosen], 1)
    np.add.at(held, ends[chosen], -1)
    missing = np.flatnonzero(learnt & solid & (np.cumsum(held)[:-1] == 0))
    if len(missing):
        raise ValueError(f"the tokenizer leaves out {text[missing[0]]!r}, which is to be learnt")
    return np.where(chosen, encoding.ids, IGNORE)


def _parts(solid: np.ndarray, learnt: np.ndarray) -> dict[str, np.ndarray]:
    return {"in": learnt, "solid in": learnt & solid, "solid out": ~learnt & solid}


def _at(mask: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Values of a mask; behind its end, the last one."""
    if not len(mask):
        return np.zeros(len(places), bool)
    return mask[np.clip(places, 0, len(mask) - 1)]
