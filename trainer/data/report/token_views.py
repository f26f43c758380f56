"""Show a token sequence as text in the report of ``trireme data``, and mark what each token is for.

Marked are the tokens that the loss counts, those that it ignores, words hidden from the model, and padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from ....models.loss import IGNORE
from .views import Piece, Role, Tokens

Marked = tuple[int, Role, str | None]
"""A token, its role, and the text to predict in its place, if it differs."""


def token_view(
    tokenizer: Any,
    tokens: Sequence[int],
    labels: Sequence[int] | None = None,
    shifted: bool = False,
    mask: Sequence[int] | None = None,
    names: Sequence[str] = (),
) -> Tokens:
    """A view of a row of tokens.

    Args:
        labels: a label for each position, ``IGNORE`` where there is none; None shows the tokens alone.
        shifted: each label stands at the position before its token.
        mask: 0 where there is padding.
        names: names of the labels; without them, labels are tokens.
    """
    if mask is None and labels is None:  # what a decoder reads is padded without a mask
        mask = [1] * (len(tokens) - _padding_behind(tokens, getattr(tokenizer, "pad_token_id", None)))
        mask += [0] * (len(tokens) - len(mask))
    there = [True] * len(tokens) if mask is None else [bool(value) for value in mask]
    wanted: list[int | None] = [None] * len(tokens)
    if labels is not None:
        own = [IGNORE, *labels][: len(tokens)] if shifted else labels
        wanted = [None if label == IGNORE else int(label) for label in own]
    marked: list[Marked] = []
    for token, label, real in zip(tokens, wanted, there, strict=True):
        role = Role.READ if labels is None else Role.IGNORED if label is None else Role.LEARNT
        hides = _hidden(tokenizer, int(token), label, names)
        marked.append((int(token), role if real or label is not None else Role.PADDING, hides))
    pieces = list(_pieces(tokenizer, marked))
    if shifted and labels is not None and len(labels) and labels[-1] != IGNORE:  # predicted behind the last token
        pieces.append(Piece("", Role.LEARNT, decoded(tokenizer, [int(labels[-1])]), 0))
    return Tokens(tuple(pieces))


def _padding_behind(tokens: Sequence[int], pad: int | None) -> int:
    """Number of padding tokens at the end."""
    behind = next((place for place, token in enumerate(reversed(tokens)) if token != pad), len(tokens))
    return behind if behind < len(tokens) else 0


def decoded(tokenizer: Any, tokens: Sequence[int]) -> str:
    """The text of tokens, special ones included; a number that is no token stands in angle brackets."""
    if any(not 0 <= token < len(tokenizer) for token in tokens):
        return "".join(f"<{token}>" for token in tokens)
    delimiter = getattr(tokenizer, "word_delimiter_token_id", None)
    if delimiter is not None:  # a vocabulary of speech, whose own decoding drops what is repeated
        signs = (" " if token == delimiter else tokenizer.convert_ids_to_tokens(token) for token in tokens)
        return "".join(signs)
    return tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)


def _hidden(tokenizer: Any, token: int, label: int | None, names: Sequence[str]) -> str | None:
    if label is None:
        return None
    if names:
        return names[label] if 0 <= label < len(names) else str(label)
    return None if label == token else decoded(tokenizer, [label])


def _pieces(tokenizer: Any, marked: Sequence[Marked]) -> Iterator[Piece]:
    """Runs of tokens with the same role. A hidden token is a piece of its own, and repeated padding is counted."""
    before: int | None = None
    for (role, hides, _), run in groupby(enumerate(marked), key=_run):
        tokens = [token for _, (token, _, _) in run]
        repeated = role is Role.PADDING and len(set(tokens)) == 1
        shown = tokens[:1] if repeated else tokens
        yield Piece(_continued(tokenizer, before, shown), role, hides, len(tokens))
        before = tokens[-1]


def _run(placed: tuple[int, Marked]) -> tuple[Role, str | None, int]:
    place, (_, role, hides) = placed
    return role, hides, place if hides is not None else -1


def _continued(tokenizer: Any, before: int | None, tokens: Sequence[int]) -> str:
    """The text that ``tokens`` add behind the token ``before``: tokenizers drop the space at the beginning of a text,
    and put one between words."""
    if before is None:
        return decoded(tokenizer, tokens)
    first, both = decoded(tokenizer, [before]), decoded(tokenizer, [before, *tokens])
    return both[len(first) :] if both.startswith(first) else decoded(tokenizer, tokens)
