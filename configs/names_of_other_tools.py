"""Look up the recipe key for an option of another tool (transformers, accelerate, DeepSpeed, axolotl), or write the
page that lists all such options.

This is used for error messages and for docs/coming-from.md. All names are in ``names_of_other_tools.yaml`` beside
this file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from ..errors import Problem

VALUES = "values"
FILE = Path(__file__).with_name("names_of_other_tools.yaml")
ABOUT = {"transformers": "transformers", "accelerate": "accelerate", "deepspeed": "DeepSpeed", "axolotl": "axolotl"}


@dataclass(frozen=True)
class OtherName:
    """One option name of another tool."""

    tool: str
    name: str
    """The name, or a pattern that ends in ``*``."""
    ours: str
    """Key, option or command of trireme; empty if there is none."""
    how: str
    """Text that says how to write it here, or gives an alternative; empty if the value stays the same."""

    def fix(self, value: Any = None) -> str:
        """The fix: what to write instead.

        Args:
            value: the value that was given; a plain one is repeated if trireme's key takes the same values.
        """
        if value is False and self.how:
            return "leave it out: it is off"
        if self.how and self.ours and not self.how.startswith(self.ours):
            return f"write {self.ours}: {self.how}"
        if self.how:
            return f"write {self.how}" if self.ours else self.how
        plain = isinstance(value, int | float | str) and not isinstance(value, bool)
        shown = str(value).lower() if isinstance(value, bool) else value
        return f"write {self.ours}={shown}" if plain or isinstance(value, bool) else f"write {self.ours}"


@dataclass(frozen=True)
class Tool:
    """One tool with its option names."""

    name: str
    title: str
    about: str
    names: tuple[OtherName, ...]


@cache
def _file() -> dict[str, Any]:
    import yaml

    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


@cache
def tools() -> tuple[Tool, ...]:
    """All tools, in the order of the file."""
    found: list[Tool] = []
    for tool, section in ((name, section) for name, section in _file().items() if name != VALUES):
        earlier = {name.name: name for before in found for name in before.names}
        names = tuple(_entry(tool, name, entry, earlier) for name, entry in section["names"].items())
        found.append(Tool(tool, section["title"], section["about"], names))
    return tuple(found)


def _entry(tool: str, name: str, entry: Any, earlier: dict[str, OtherName]) -> OtherName:
    if entry is None:
        return OtherName(tool, name, earlier[name].ours, earlier[name].how)
    ours, how = entry if isinstance(entry, list) else (entry, "")
    return OtherName(tool, name, ours, how)


def find(name: str) -> OtherName | None:
    """The entry of a name (leading dashes are ignored): an exact one, else the first pattern that matches."""
    plain = name.strip().lstrip("-").replace("-", "_")
    names = list(_all())
    exact = (other for other in names if other.name == plain)
    return next(exact, None) or next((other for other in names if fnmatchcase(plain, other.name)), None)


def _all() -> Iterator[OtherName]:
    for tool in tools():
        yield from tool.names


def answer(field: str, value: Any = None) -> Problem | None:
    """The problem of a key that belongs to another tool; None if no tool has it, or trireme has it too.

    Args:
        field: dotted path of the key in the recipe; only its last part is looked up.
    """
    other = find(field.rpartition(".")[2])
    if other is None or other.ours == field:
        return None
    return Problem(field, f"is a name of {ABOUT[other.tool]}, not a key here", other.fix(value), value)


def value_fix(key: str, value: Any) -> str:
    """The fix for a value that another tool uses for a group or key; empty if no tool has this value.

    Args:
        key: group, or dotted path.
    """
    known = _file().get(VALUES, {}).get(key, {})
    ours = next((ours for theirs, ours in known.items() if str(theirs).lower() == str(value).lower()), "")
    return ours if " " in ours or "=" in ours or not ours else f"write {key}={ours}"


def coming_from() -> str:
    """The text of docs/coming-from.md."""
    lines = [
        "# Coming from other tools",
        "",
        "This page lists option names of transformers, accelerate, DeepSpeed and axolotl, and trireme's key for each.",
        "If a recipe, the command line or `trireme.train(...)` has a name of these tools, trireme refuses it and",
        "suggests its own key. All keys of trireme: [keys.md](keys.md).",
        "",
        "Three things work differently. A recipe says `trainer.global_batch_size`, the samples of one optimizer step,",
        "and accumulation follows from it. Parallelism is one choice, `plan=NAME`. The same command resumes.",
        "",
        "`trireme convert-args FILE my.yaml` makes a recipe of a file of arguments: `TrainingArguments` as YAML or",
        "JSON, a file of `accelerate config`, a JSON of DeepSpeed (which the recipe then names as it is), or a file of",
        "axolotl. Defaults of the tool that differ from those here are written out. What could not be taken over",
        "stands at the end, with what to do about it.",
        "",
        "This page is made from `configs/names_of_other_tools.yaml` by `make pages`.",
    ]
    for tool in tools():
        lines += ["", f"## {tool.title}", "", tool.about, "", "| there | here | how |", "| --- | --- | --- |"]
        lines += [_row(name) for name in tool.names]
    return "\n".join(lines) + "\n"


def _row(name: OtherName) -> str:
    ours, how = f"`{name.ours}`" if name.ours else "-", (name.how or "the same").replace("|", "\\|")
    return f"| `{name.name}` | {ours} | {how} |"
