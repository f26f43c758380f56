"""Check the overrides of a command line (``key=value``), and rewrite them in the form that Hydra expects.

Hydra's ``+`` and ``++`` say whether a key may be new. Here the typed schema decides that for all keys at once, so plain
values are always passed as ``++key=value``. Choices of groups (``plan=ddp``) are looked up before Hydra sees them, and
an override that cannot be read becomes a problem that names its key.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..configs.names_of_other_tools import value_fix
from ..configs.values import did_you_mean
from ..errors import Problem
from .find_recipes import PACKAGE, group_options, misnamed_option

PAIRS = {"[": "]", "{": "}", "(": ")"}
QUOTED_KEY = re.compile(r"""(["'])([\w.]+)\1\s*:""")
CALLBACKS = "callbacks"
FLOW = "trireme.trainer.callbacks.flow.Flow"
"""The callback that every run needs: a file with it is a set of callbacks, any other a single callback to be added."""
MAY_BE_NULL = ("ema", "adapter", "quantization", "qat", "collator", CALLBACKS, "tracker", "search")
"""Groups that a run can do without."""
TAKE_SEVERAL = (CALLBACKS, "tracker")
"""Groups whose options are added to each other; of the others a run takes one."""


def prepare(overrides: Sequence[str], folders: Sequence[Path], sweeps: bool = False) -> tuple[list[str], list[Problem]]:
    """Overrides for Hydra, and the problems of overrides that were left out.

    Args:
        overrides: overrides as typed.
        folders: folders of groups.
        sweeps: whether several values for one key are allowed (they mean several runs).
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    parser, accepted, problems = OverridesParser.create(), [], []
    for text in overrides:
        if problem := _malformed(text):
            problems.append(problem)
            continue
        try:
            override = parser.parse_override(text)
            several = override.is_sweep_override()
        except HydraException as error:
            problems.append(_unreadable(text, error))
            continue
        key = override.key_or_group
        if key == "hydra.mode":
            problems.append(Problem(key, "has no effect", "a sweep is started by --multirun", value_of(text)))
        elif key.startswith(("hydra.", "hydra/")) or override.package is not None:
            accepted.append(text)
        elif several and not sweeps:
            problems.append(_several(key, text))
        elif group_options(key, folders):
            changed, found = _choice(override, text, folders)
            accepted += changed
            problems += found
        elif override.type in (OverrideType.CHANGE, OverrideType.ADD):
            accepted.append(f"++{text.lstrip('+')}")
        else:
            accepted.append(text)
    return [*accepted, *_alternatives(accepted)], problems


def key_of(override: str) -> str:
    """``trainer.max_steps`` of ``++trainer.max_steps=3``."""
    return override.partition("=")[0].lstrip("+~")


def value_of(override: str) -> str:
    return override.partition("=")[2]


def last_of_each(overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides without those whose key a later one sets or leaves out (``~key``), and a note on each that is dropped.

    Keys that are given a mapping stay, since Hydra merges mappings.
    """
    last = {key_of(text): text for text in overrides}
    merged = {key_of(text) for text in overrides if value_of(text).startswith("{")}
    kept, notes = [], []
    for index, text in enumerate(overrides):
        key = key_of(text)
        later = key not in merged and any(key_of(other) == key for other in overrides[index + 1 :])
        if not later:
            kept.append(text)
        elif text != last[key]:
            notes.append(f"{text} has no effect, since {last[key]} comes after it")
    return kept, notes


def chooses(text: str, folders: Sequence[Path]) -> bool:
    """Whether an override chooses a file of a group."""
    return bool(group_options(key_of(text), folders))


def single_callbacks(text: str, folders: Sequence[Path]) -> list[str]:
    """Names that ``callbacks=...`` chooses, empty if one of them is a set (a file with ``flow`` or ``defaults``)."""
    if key_of(text) != CALLBACKS or text.startswith("~"):
        return []
    names = [name.strip("'\" ") for name in value_of(text).strip("[]").split(",")]
    files = [
        next((f for folder in folders if (f := folder / CALLBACKS / f"{name}.yaml").is_file()), None) for name in names
    ]
    return names if names and not any(file is None or _is_set(file) for file in files) else []


def _is_set(file: Path) -> bool:
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):  # reported when the file is composed
        return True
    content = content if isinstance(content, dict) else {}
    return "defaults" in content or FLOW in {
        part.get("_target_") for part in content.values() if isinstance(part, dict)
    }


def quoted(value: str) -> str:
    """A string, quoted as a value of an override; it may hold any characters."""
    return "'" + value.replace("\\'", "\\\\'").replace("'", "\\'") + "'"


def _alternatives(accepted: Sequence[str]) -> Iterator[str]:
    """Overrides that set a key to null if its alternative is given (``trainer.epochs`` for ``trainer.max_steps``)."""
    given = {key_of(text): value_of(text) for text in accepted if not text.startswith("~")}
    for pair in alternatives():
        for key, other in (pair, pair[::-1]):
            if given.get(key, "null") != "null" and other not in given:
                yield f"++{other}=null"


def alternatives() -> list[tuple[str, str]]:
    """Pairs of dotted keys that exclude each other; dataclasses list them in ``ALTERNATIVES``."""
    from ..configs.schema import RecipeConfig
    from ..configs.validate import schema_alternatives

    return list(schema_alternatives(RecipeConfig))


def _malformed(text: str) -> Problem | None:
    """The problem of a text that is not an override, worded for a typing mistake."""
    if text.startswith("~"):
        return None
    key, equals, value = text.partition("=")
    name = key.lstrip("+")
    if not equals:
        fix = "write key=value; options of the command begin with --"
        return Problem(text, "is not an override: it has no =", fix)
    if not name.strip() or name != name.strip():
        return Problem(text, "is not an override: the key is missing, or there are spaces around =", "write key=value")
    if not re.fullmatch(r"[\w.@:/$-]+", name) or re.search(r"^\.|\.\.|\.$", name):
        fix = "write key=value, with dots between the parts of the key; of a list give the whole: key=[a,b]"
        return Problem(text, f"{name!r} is not a key", fix)
    if not value.strip():
        return Problem(name, "has no value", f"write {name}=null for none, or {name}=\"''\" for an empty text")
    return None


def _unreadable(text: str, error: Exception) -> Problem:
    """The problem of a value that Hydra's grammar refuses; quoting nearly always mends it."""
    key, _, value = text.lstrip("+").partition("=")
    plain = value.strip("'\"")
    if text.startswith("~"):
        return Problem(text, "cannot be read as an override", "write ~key to leave a key out")
    if value.count("'") % 2 or value.count('"') % 2:
        why = "has a quotation mark that is not closed"
    elif wrong := _brackets(key, value):
        return wrong
    elif (unquoted := QUOTED_KEY.sub(r"\2:", value)) != value:
        fix = f"write the keys without them: '{key}={unquoted}'"
        return Problem(key, "has quotation marks around its keys, as JSON does, and overrides take none", fix, value)
    else:
        why = "holds characters that have a meaning in overrides"
    fix = f'to take it as a text, quote it twice, for the shell and for the override: {key}="{quoted(plain)}"'
    return Problem(key, f"{why} and cannot be read", fix, value)


def _brackets(key: str, value: str) -> Problem | None:
    """The problem of brackets that do not match; None if they do. What is quoted does not count."""
    open_ones: list[str] = []
    for sign in re.sub(r"'(\\.|[^'])*'|\"(\\.|[^\"])*\"", "", value):
        if sign in PAIRS:
            open_ones.append(PAIRS[sign])
        elif sign in PAIRS.values() and (not open_ones or open_ones.pop() != sign):
            fix = f'leave it out, or open it; for a text with brackets write {key}="{quoted(value)}"'
            return Problem(key, f"closes a bracket {sign} that was not opened", fix, value)
    if not open_ones:
        return None
    closing = "".join(reversed(open_ones))
    why = f"has a bracket that is not closed: {closing} is missing"
    fix = f"close it, and if there are spaces in it, quote the whole for the shell: '{key}={value}{closing}'"
    return Problem(key, why, fix, value)


def _several(key: str, text: str) -> Problem:
    value = value_of(text)
    fix = f"for one run each add -m; for a list write {key}=[{value}]; for a text {key}=\"'{value}'\""
    return Problem(key, "holds several values for one run", fix, value)


def _choice(override: Any, text: str, folders: Sequence[Path]) -> tuple[list[str], list[Problem]]:
    """A choice of a group in Hydra's form, or its problems."""
    group, options = override.key_or_group, group_options(override.key_or_group, folders)
    value = override.value()
    if (override.is_delete() or value is None) and group in MAY_BE_NULL:
        return [f"{group}=[]"], []
    if override.is_delete():
        return [text], []
    if value is None:
        fix = f"choose one: {', '.join(options)}" if len(options) <= 40 else f"choose one, for example {options[0]}"
        return [], [Problem(group, "cannot be null: every run needs one", fix)]
    if isinstance(value, Mapping):
        chosen = [name for name in value if name in options]
        keys = " ".join(f"{group}.{name}=..." for name in list(value)[:3])
        fix = f"choose it: {group}={chosen[0]}" if chosen else f"set its keys: {keys}"
        return [], [Problem(group, "is a mapping, but a choice is a name", fix)]
    if value == [] and group not in MAY_BE_NULL:
        return [], [Problem(group, "chooses nothing: every run needs one", f"choose one, for example {options[0]}")]
    problems = []
    for name in _names(value):
        if isinstance(value, list) and "${" in str(name):
            why = "is an interpolation in a list of choices; Hydra resolves only one that makes the whole choice"
            problems.append(Problem(group, why, f"write the names: {group}=[{options[0]}, ...]", str(name)))
        elif problem := unknown_option(group, name, options, folders):
            problems.append(problem)
    if isinstance(value, list) and (problem := too_many_options(group, [str(name) for name in _names(value)])):
        problems.append(problem)
    if problems:
        return [], problems
    return [text.lstrip("+")], []


def _names(value: Any) -> Iterable[Any]:
    choices = getattr(value, "list", value if isinstance(value, list) else [value])
    for choice in choices:
        if isinstance(choice, list):
            yield from choice
        else:
            yield getattr(choice, "text", choice)


def unknown_option(group: str, name: Any, options: Sequence[str], folders: Sequence[Path]) -> Problem | None:
    """The problem of a name that is no option of a group; None if it is one."""
    name = str(name).lower() if isinstance(name, bool) else str(name)
    if name in options or "${" in name:
        return None
    if name.endswith((".yaml", ".yml")) and name.rpartition(".")[0] in options:
        return Problem(
            group, "is the name of a file; a choice has no suffix", f"write {group}={name.rpartition('.')[0]}", name
        )
    if file := misnamed_option(group, name, folders):
        return Problem(group, f"is a file whose name does not end in .yaml: {file}", f"rename it {name}.yaml", name)
    fix = did_you_mean(name, options)
    near = fix.replace("did you mean ", f"did you mean {group}=")
    return Problem(group, "there is no such option", value_fix(group, name) or near, name)


def too_many_options(group: str, names: Sequence[str]) -> Problem | None:
    """The problem of a list that names an option twice, or chooses several of trireme's own options, each of which is
    complete: merged key by key, they would be neither. An option of the user's own may be merged over one of them."""
    once = list(dict.fromkeys(names))
    if twice := next((name for name in once if names.count(name) > 1), None):
        fix = f"name it once: {group}=[{','.join(once)}]"
        return Problem(group, f"names the option {twice} more than once", fix, f"[{', '.join(names)}]")
    complete = [name for name in names if (PACKAGE / "configs" / group / f"{name}.yaml").is_file()]
    if group in TAKE_SEVERAL or len(complete) < 2:
        return None
    why = f"chooses {len(complete)} complete options, and a run takes one"
    fix = f"choose one, such as {group}={complete[0]}; for a run of each: {group}={','.join(complete)} -m"
    return Problem(group, why, fix, f"[{', '.join(names)}]")


def without_choices(overrides: Sequence[str]) -> list[str]:
    """Overrides that are the same in every job of a sweep."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()

    def fixed(text: str) -> bool:
        try:
            return not parser.parse_override(text).is_sweep_override()
        except HydraException:  # refused when the recipe is composed
            return True

    return [text for text in overrides if fixed(text)]
