"""A chat data set that needs no download: questions and answers about Python's standard library.

The conversations are made from the source code of the library. Each function gives several of them: where it is, what
it does, how it is called, and two of these questions in one conversation. In another one the assistant calls a tool
that looks the function up, and answers with the result. The held-out conversations ask for the same facts in other
words, or ask the assistant to copy a text that occurs in no training conversation.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ....errors import Problem, UserError
from ..content_stamp import content_stamp, hash_json
from .conversation import ASSISTANT, Message
from .tools import tool_schemas

MODULES = (
    "base64", "bisect", "calendar", "copy", "dataclasses", "difflib", "fnmatch", "functools", "glob", "heapq", "html",
    "json", "linecache", "operator", "pprint", "random", "secrets", "shlex", "statistics", "string", "textwrap",
    "timeit", "uuid", "warnings",
)  # fmt: skip
"""Modules whose sources every Python has."""
KINDS = {
    "module": ("Which module has {name}?", "Where is {name} from?", "I need {name}. What do I import?"),
    "purpose": ("What does {module}.{name} do?", "What is {name} of {module} for?"),
    "call": ("How is {module}.{name} called?", "Which arguments does {name} of {module} take?"),
}
"""Kinds of questions, each in several wordings."""
ANSWERS = {"module": "from {module} import {name}", "purpose": "{purpose}", "call": "{name}({arguments})"}
LOOKS_UP = "trireme.trainer.data.chat.python_questions.look_up"
"""Dotted path of the tool."""
LOOK_UP = ("Look up {module}.{name}.", "Please look for {name} in {module}.")


@dataclass(frozen=True)
class Function:
    """A public function of the standard library, and the first line of its documentation."""

    module: str
    name: str
    arguments: str
    purpose: str


def look_up(name: str) -> str:
    """Look up the documentation of a function.

    Args:
        name: its name, with the module
    """
    module, _, function = name.rpartition(".")
    found = (each for each in functions_of(module) if each.name == function)
    return next((f"{each.name}({each.arguments}): {each.purpose}" for each in found), "There is none.")


@dataclass
class PythonQuestions:
    """Questions and answers about functions of the standard library, in the columns ``messages`` and ``tools``."""

    modules: list[str] | None = None
    """Modules whose functions are asked for; null takes those that are written in Python and well described."""
    longest: int = 70
    """Functions whose arguments or purpose have more characters than this are left out."""

    @property
    def asked(self) -> list[str]:
        return list(MODULES) if self.modules is None else self.modules

    def rows(self, cache_dir: str) -> Iterator[dict[str, Any]]:
        every = [each for module in self.asked for each in functions_of(module) if self._fits(each)]
        times = Counter(function.name for function in every)
        for number, function in enumerate(every):
            if times[function.name] == 1:  # else there would be several answers
                for messages in _chats(function, number):
                    tools = json.dumps(tool_schemas([LOOKS_UP])) if "tool_calls" in messages[1] else ""
                    yield {"messages": json.dumps(messages, ensure_ascii=False), "tools": tools}

    def look(self) -> None:
        """Refuse modules without sources."""
        for module in self.asked:
            _source(module)

    def column_names(self) -> list[str]:
        return ["messages", "tools"]

    def fingerprint(self) -> str:
        return self.content()

    def content(self) -> str:
        """A fingerprint of the sources."""
        return hash_json([self.longest, [[module, content_stamp(_source(module))] for module in self.asked]])

    def _fits(self, function: Function) -> bool:
        return max(len(function.purpose), len(function.arguments)) <= self.longest


def functions_of(module: str) -> Iterator[Function]:
    """Public functions of a module that say what they are for.

    Raises:
        UserError: it has no source.
    """
    for node in ast.parse(_source(module).read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        purpose = (ast.get_docstring(node) or "").partition("\n")[0].strip()
        if purpose:
            yield Function(module, node.name, ast.unparse(node.args), purpose)


def _source(module: str) -> Path:
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        fix = "name modules of the standard library that are written in Python"
        raise UserError(Problem("data.source.modules", "holds a module whose source is not there", fix, module))
    return Path(found.origin)


def _chats(function: Function, number: int) -> Iterator[list[Message]]:
    """All conversations about a function; ``number`` chooses a wording where only one of several is used."""
    single = [_asked(function, kind, way) for kind, ways in KINDS.items() for way in range(len(ways))]
    yield from single
    first, second = list(KINDS)[number % 3], list(KINDS)[(number + 1) % 3]
    yield [*_asked(function, first, 0), *_asked(function, second, 1)]
    yield _looked_up(function, LOOK_UP[number % len(LOOK_UP)])


def _asked(function: Function, kind: str, way: int) -> list[Message]:
    parts = vars(function)
    question, answer = KINDS[kind][way].format(**parts), ANSWERS[kind].format(**parts)
    return [{"role": "user", "content": question}, {"role": ASSISTANT, "content": answer}]


def _looked_up(function: Function, question: str) -> list[Message]:
    parts, name = vars(function), f"{function.module}.{function.name}"
    call = {"type": "function", "function": {"name": look_up.__name__, "arguments": {"name": name}}}
    told = f"{function.name}({function.arguments}): {function.purpose}"
    return [
        {"role": "user", "content": question.format(**parts)},
        {"role": ASSISTANT, "content": "", "tool_calls": [call]},
        {"role": "tool", "name": look_up.__name__, "content": told},
        {"role": ASSISTANT, "content": told},
    ]
