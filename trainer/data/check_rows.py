"""Check the first rows of chat and preference data before the data is prepared, by the rules of their readers. Images
and audio clips are looked for, and not opened.

Neither torch nor transformers is imported, so errors that a chat template raises are not found here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

from ...errors import Problem
from .chat.chat_config import KEY, ChatConfig
from .chat.conversation import COLUMNS, content_parts, conversation_of, refuse_no_completion
from .chat.media import KINDS, Kind, kinds_in, media_of_kinds
from .chat.media_forms import FOLDER
from .data_config import DataConfig
from .first_rows import HEAD
from .preference.preference_form import answers_of, refuse_form
from .row_source import RowSource


def row_problems(
    source: RowSource, config: DataConfig, wanted: Mapping[str, bool], columns: Mapping[str, str]
) -> list[Problem]:
    """The problem of rows that the reader would refuse.

    Args:
        wanted: columns that the task knows.
        columns: ``data.columns`` of the recipe: names that the task uses -> columns of the source.

    Raises:
        UserError: a file does not hold rows.
    """
    pairs, chats = "rejected" in wanted, config.chat is not None or FOLDER in wanted
    if not (pairs or chats):
        return []
    rows = [*source.first_rows()]
    if _leaves_out(config):
        return []
    present = source.present([*dict.fromkeys(name for _, row in rows for name in row)], wanted, columns)
    named = [(place, {name: row.get(column) for name, column in present.items()}) for place, row in rows]
    media = _media_of_rows([row for _, row in named], config.chat or ChatConfig(), wanted)
    reasons = list[tuple[str, str]]()
    for place, row in named:
        try:
            _refuse(row, config.chat, wanted, media)
        except ValueError as error:
            reasons.append((str(error), place))
    if not reasons:
        return []
    reason, place = reasons[0]
    why = f"{len(reasons)} of {len(rows)} rows that were checked are not usable: {reason} (the first is {place})"
    fix = f"correct them, or leave them out: {KEY if chats else 'data.samples'}.unusable=leave_out"
    return [Problem(source.key, why, fix)]


def head_of_chats(source: RowSource, config: DataConfig, columns: Mapping[str, str]) -> list[tuple[str, Any]]:
    """Pairs (place, row) of the first conversations of a source that have the right shape, for a check of the template.

    Args:
        columns: as in ``row_problems``.
    """
    rows = [*islice(source.first_rows(), HEAD)]
    present = source.present([*dict.fromkeys(name for _, row in rows for name in row)], COLUMNS, columns)
    found = []
    for place, row in rows:
        named = {name: row.get(column) for name, column in present.items()}
        with suppress(ValueError):  # reported by ``row_problems``
            _refuse_chat(named, config.chat or ChatConfig())
            found.append((place, named))
    return found


def _leaves_out(config: DataConfig) -> bool:
    """Whether rows that are not usable are left out."""
    asked = config.chat.unusable if config.chat is not None else config.samples.get("unusable")
    return asked == "leave_out"


def _media_of_rows(rows: Sequence[Mapping[str, Any]], chat: ChatConfig, wanted: Mapping[str, bool]) -> list[Kind]:
    """The kinds of media that every row needs: those of the first row that holds any, as in training; if
    no row does, all that the task reads."""
    able = [kind for kind in KINDS if kind.column in wanted]
    for row in rows if able else ():
        with suppress(ValueError):  # refused later
            if found := kinds_in(conversation_of(row, roles=chat.role_names).messages, able):
                return found
    return able


def _refuse(row: Mapping[str, Any], chat: ChatConfig | None, wanted: Mapping[str, bool], media: Sequence[Kind]) -> None:
    """Refuse a row by the rules of its reader.

    Args:
        media: the kinds of media that every row needs.

    Raises:
        ValueError: it is not usable; the message says why.
    """
    if "rejected" not in wanted:
        _refuse_chat(row, chat or ChatConfig(), media)
        return
    for answer, _ in answers_of(row, "label" in wanted):
        refuse_form(answer, chat is not None)
        if chat is not None:
            _refuse_chat(answer, chat)


def _refuse_chat(row: Mapping[str, Any], chat: ChatConfig, media: Sequence[Kind] = ()) -> None:
    found = conversation_of(row, chat.system, None, chat.tool_arguments == "text", chat.role_names)
    for number, message in enumerate(found.messages):
        content_parts(message, number, media)
    media_of_kinds(found.messages, row, media, chat.media_folder)
    if chat.loss == "completions":
        refuse_no_completion(found)
