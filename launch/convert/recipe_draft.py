"""``Draft`` collects the keys of a recipe while another tool's arguments are converted, and writes them as YAML.

It has the chosen groups, the values of keys, and the arguments that could not be converted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

REQUIRED = {"model": "pretrained", "data": "files"}
"""Groups that a recipe must choose -> the option that is written if no argument determines one."""
ORDER = ("run", "model", "task", "data", "plan", "trainer", "optimizer", "scheduler", "checkpoint", "callbacks", "seed")
"""Order of the parts in the file."""
SEQUENCE = "tag:yaml.org,2002:seq"
LISTS = ("callbacks", "tracker")
"""Groups of which several options may be chosen."""


class _Dumper(yaml.SafeDumper):
    """Writes lists in one line, and quotes around texts that OmegaConf reads as numbers (1e3)."""


def _text(dumper: _Dumper, value: str) -> yaml.Node:
    try:
        float(value)
    except ValueError:
        return dumper.represent_str(value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="'")


_Dumper.add_representer(str, _text)
_Dumper.add_representer(list, lambda dumper, value: dumper.represent_sequence(SEQUENCE, value, flow_style=True))


@dataclass
class Draft:
    """Choices, values and remarks, in the order in which they were found."""

    choices: dict[str, list[str]] = field(default_factory=dict)
    """Options of groups, such as ``plan`` -> ``[zero2]``."""
    values: dict[str, Any] = field(default_factory=dict)
    """Values by dotted key."""
    left: dict[str, tuple[Any, str]] = field(default_factory=dict)
    """Arguments that were not converted: name -> (value, advice)."""
    assumed: dict[str, str] = field(default_factory=dict)
    """Keys that follow from a default of the other tool -> the name and value of that default."""
    chosen: dict[str, str] = field(default_factory=dict)
    """Settings that the conversion chose, since the file has none or cannot be trained on the ranks: ``key=value`` ->
    why."""
    ranks: int = 1
    """Processes of each machine that the recipe is for."""
    now: tuple[str, ...] = ()
    """Arguments that are being converted."""
    written_by: dict[str, list[str]] = field(default_factory=dict)
    """Keys -> the arguments that have written them."""

    def choose(self, group: str, option: str) -> None:
        kept = self.choices.get(group, []) if group in LISTS else []
        self.choices[group] = [*[each for each in kept if each != option], option]

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value
        self.written_by[key] = list(dict.fromkeys([*self.written_by.get(key, ()), *self.now]))

    def leave(self, name: str, value: Any, why: str) -> None:
        self.left[name] = (value, why)

    def assign(self, text: str) -> None:
        """Take an override such as ``plan=zero2`` or ``plan.precision=bf16``."""
        key, _, value = text.partition("=")
        parsed = yaml.safe_load(value)
        if "." in key:
            self.set(key, parsed)
        else:
            for option in parsed if isinstance(parsed, list) else [str(parsed)]:
                self.choose(key, option)

    def text(self, source: str, command: str) -> str:
        """The recipe in YAML, with arguments that were not converted as comments.

        Args:
            source: file that was converted.
            command: the command that trains it.
        """
        about = f"# Converted from {source} by trireme convert-args. The end lists arguments that were not converted."
        lines = [about, f"# {command}", "defaults:", "  - /base"]
        chosen = {group: [option] for group, option in REQUIRED.items() if group not in self.choices} | self.choices
        for group in sorted(chosen, key=lambda name: (name not in REQUIRED, name)):
            options = chosen[group]
            shown = f"[{', '.join(options)}]" if group in LISTS and len(options) > 1 else options[-1]
            lines.append(f"  - {'' if group in REQUIRED else 'override '}/{group}: {shown}")
        lines += ["  - _self_", ""]
        body = _nested(self.values)
        for part in sorted(body, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER)):
            dumped = yaml.dump({part: body[part]}, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**6)
            lines += [*dumped.rstrip().splitlines(), ""]
        if self.assumed:
            lines.append("# Defaults of the other tool that differ from trireme's:")
            lines += [f"#   {key}: {of}" for key, of in self.assumed.items()]
            lines.append("")
        if self.chosen:
            lines.append("# Chosen, since the file leaves it open or its ranks could not train it:")
            lines += [f"#   {setting}: {why}" for setting, why in self.chosen.items()]
            lines.append("")
        if self.left:
            lines.append("# Not converted:")
            lines += [f"#   {name}: {_short(value)}   -> {why}" for name, (value, why) in self.left.items()]
        return "\n".join(lines).rstrip() + "\n"


def _nested(values: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        inside = found
        for name in path:
            inside = inside.setdefault(name, {})
        inside[last] = value
    return found


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
