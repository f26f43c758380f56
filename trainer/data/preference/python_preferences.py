"""A preference data set that needs no download: right and wrong answers about Python's standard library.

The questions are those of ``chat/python_questions.py``. The chosen answer is the right one, and the rejected answer is
that of another function. A model that was fine-tuned on the questions knows most of the answers, and the preferences
teach it to prefer them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..chat.python_questions import ANSWERS, KINDS, Function, PythonQuestions, functions_of
from ..content_stamp import hash_json

DISTANCE = 7
"""Step in the list of functions from one to the next whose answer is tried as the wrong one."""


@dataclass
class PythonPreferences(PythonQuestions):
    """Questions about functions with a right and a wrong answer, in columns ``prompt``, ``chosen`` and ``rejected``."""

    def rows(self, cache_dir: str) -> Iterator[dict[str, Any]]:
        every = [each for module in self.asked for each in functions_of(module) if self._fits(each)]
        times = Counter(function.name for function in every)
        for number, function in enumerate(every):
            if times[function.name] > 1:  # there would be several right answers
                continue
            for kind, ways in KINDS.items():
                right, wrong = _answer(function, kind), _wrong(every, number, kind)
                for way in ways if wrong else ():
                    yield {"prompt": way.format(**vars(function)), "chosen": right, "rejected": wrong}

    def column_names(self) -> list[str]:
        return ["prompt", "chosen", "rejected"]

    def content(self) -> str:
        return hash_json(["preferences", DISTANCE, super().content()])


def _answer(function: Function, kind: str, name: str | None = None) -> str:
    parts = vars(function)
    return ANSWERS[kind].format(**{**parts, "name": name or parts["name"]})


def _wrong(every: list[Function], number: int, kind: str) -> str | None:
    """The answer of another function in place of that of ``number``; None if all answer alike."""
    function, right = every[number], _answer(every[number], kind)
    others = (every[(number + DISTANCE * step) % len(every)] for step in range(1, len(every)))
    answers = (_answer(other, kind, function.name) for other in others)
    return next((answer for answer in answers if answer != right), None)
