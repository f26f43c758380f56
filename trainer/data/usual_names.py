"""Recognise the columns of chat and preference data by the names that well-known data sets use (Alpaca, Dolly, Orca,
LLaVA).

A recipe's own ``data.columns`` always count first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

INSTRUCTION = "instruction"
"""Column of a prompt that a further column may belong to."""
FURTHER = "input"
"""The task's name for the text that belongs to an instruction."""
FURTHERS = ("input", "context")
"""Columns that belong to an instruction: Alpaca's and Dolly's."""
ANSWERS = ("output", "response")
"""Columns of the answer to an instruction."""
QUESTIONS = (INSTRUCTION, "question", "query", "input")
"""Columns of the prompt beside two answers."""
SINGLE = {"images": "image", "audios": "audio"}
"""Columns of media -> the column of one image or clip for each row: LLaVA's."""
CHATS = ("messages", "conversations", "prompt", "completion")


def with_usual_names(wanted: Mapping[str, bool], columns: Mapping[str, str], there: Sequence[str]) -> dict[str, str]:
    """``columns``, with those of published data sets that are there and that no name of the task stands for yet.

    Args:
        wanted: columns by the names that the task uses.
        columns: names that the task uses -> columns of the source, of the recipe.
        there: columns of the source.
    """
    found = dict(columns)
    for name, usual in SINGLE.items():
        if name in wanted and name not in found and name not in there and usual in there:
            found[name] = usual
    if FURTHER not in wanted:
        return found
    given = {name for name in wanted if name in found or name in there}
    free = [name for name in there if name not in found.values()]
    if "rejected" in wanted and {"chosen", "rejected"} <= given and "prompt" not in given:
        found |= _first("prompt", QUESTIONS, free)
    elif "messages" in wanted and not given & {*CHATS} and INSTRUCTION in free:
        answer = _first("completion", ANSWERS, free)
        found |= {"prompt": INSTRUCTION, **answer} if answer else {}
    if found.get("prompt") == INSTRUCTION and FURTHER not in found:
        found |= _first(FURTHER, FURTHERS, [name for name in free if name not in found.values()])
    return found


def read_columns(wanted: Mapping[str, bool], columns: Mapping[str, str], there: Sequence[str]) -> dict[str, str]:
    """Names that the task uses -> columns of the source that are read.

    Args:
        columns: as ``with_usual_names`` gives them.
    """
    names = {name: columns.get(name, name) for name in wanted}
    if FURTHER in wanted and FURTHER not in columns:  # without an instruction it may be anything
        del names[FURTHER]
    return {name: column for name, column in names.items() if column in there}


def _first(name: str, columns: Sequence[str], there: Sequence[str]) -> dict[str, str]:
    return next(({name: column} for column in columns if column in there), {})
