"""Check ``data.chat`` of a recipe before its data is prepared: template, tools, tokenizer, stop token, first rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ....errors import Problem, UserError
from ..tokenizer import SMALLEST_VOCABULARY, TokenizerConfig, load_tokenizer, train_tokenizer
from .chat_config import KEY, ChatConfig
from .chat_encoder import ChatEncoder
from .chat_tokenizer import prepared_tokenizer
from .prepare_chats import no_stop

QUESTION, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
TRIED: tuple[Mapping[str, Any], ...] = (
    {"messages": [QUESTION, ANSWER]},
    {"messages": [QUESTION, ANSWER, QUESTION, ANSWER]},
    {"prompt": "q", "completion": "a"},
)
"""Rows with which a template is tried."""


def check_chat(
    chat: ChatConfig,
    tokenizer: TokenizerConfig,
    weights: Path | None,
    block_size: int,
    first_rows: Mapping[str, Iterable[tuple[str, Mapping[str, Any]]]] | None = None,
) -> tuple[list[Problem], int | None]:
    """Problems of a recipe's chats, and the number of tokens of a tokenizer that is not trained.

    Args:
        weights: folder of the model's weights.
        first_rows: rows that the template is tried with: key of a source -> pairs (place, row).
    """
    try:
        plain, trained = _tokenizer(tokenizer, weights)
    except UserError:  # reported by the check of the tokenizer
        return [], None
    try:
        prepared = prepared_tokenizer(plain, chat, trained)
        encoder = ChatEncoder(prepared, chat)
    except UserError as error:
        return [problem for problem in error.problems if isinstance(problem, Problem)], None
    problems = [] if chat.loss in ("all", "roles") or _ends(encoder) else [no_stop(block_size)]
    if not problems and chat.unusable == "refuse":
        problems = [one for key, rows in (first_rows or {}).items() for one in _of_rows(encoder, key, rows)]
    return problems, None if trained else len(prepared)


def _tokenizer(config: TokenizerConfig, weights: Path | None) -> tuple[Any, bool]:
    """The tokenizer of a run, or one of single bytes in place of one that is still to be trained."""
    if config.path is not None:
        return load_tokenizer(config.path), False
    if weights is not None:
        return load_tokenizer(str(weights), "model.weights"), False
    return train_tokenizer(TokenizerConfig(vocab_size=SMALLEST_VOCABULARY), lambda: ["a"]), True


def _ends(encoder: ChatEncoder) -> bool:
    """Whether an answer ends by a token; true if the template takes none of the rows, which only data can tell."""
    taken = [found for row in TRIED if (found := _encoded(encoder, row)) is not None]
    return not taken or any(found.stops for found in taken)


def _of_rows(encoder: ChatEncoder, key: str, rows: Iterable[tuple[str, Mapping[str, Any]]]) -> list[Problem]:
    """The problem of the first rows that the encoder refuses."""
    seen, reasons = 0, list[tuple[str, str]]()
    for place, row in rows:
        seen += 1
        try:
            encoder(row)
        except ValueError as error:
            reasons.append((str(error), place))
    if not reasons:
        return []
    reason, place = reasons[0]
    why = f"{len(reasons)} of the first {seen} rows are not usable: {reason} (the first is {place})"
    return [Problem(key, why, f"correct them, or leave them out: {KEY}.unusable=leave_out")]


def _encoded(encoder: ChatEncoder, row: Mapping[str, Any]) -> Any:
    try:
        return encoder(row)
    except ValueError:
        return None
