"""Check a recipe's own file, its list of defaults and its parts, so that errors name the file and often the line. Also
read the text of users' files.

Hydra and OmegaConf report an empty file, a list, a byte that is not text or a duplicate key in their own terms, often
without the name of the file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..configs.values import did_you_mean, nearest
from ..errors import Problem, UserError
from .find_recipes import group_options, groups_of_base, list_recipes
from .hydra_errors import GROUPS, needs_variable, yaml_problem
from .overrides import too_many_options

BEGIN = "begin the recipe with  defaults: [/base, /model: ..., /data: ...]"
PARTS = ("run", "model", "task", "data", "plan", "trainer", "optimizer", "scheduler", "checkpoint")
"""Parts that /base and the usual choices give to every recipe."""
TOO_DEEP = ("is nested too deeply", "leave out brackets, or indentation, that nothing needs")
"""Reason and fix of a file that is nested more deeply than Python can read."""
READ_EARLY = ("run", "plan", "launch")
"""Parts that are used before the recipe is read as a whole."""


def check_recipe_file(path: Path, recipe_dirs: Sequence[str] = ()) -> None:
    """Refuse a file that cannot be a recipe.

    Args:
        recipe_dirs: folders with recipes that it may build on.

    Raises:
        UserError: the file cannot be read, is no YAML mapping, has a key twice, or lacks parts and ``defaults``.
    """
    node = mapping_node(path)
    keys = [str(key.value) for key, _ in node.value]
    problems = list(doubled(node, str(path)))
    if "defaults" not in keys:
        problems += _without_defaults(keys, path)
    lists = [value for key, value in node.value if key.value == "defaults"]
    problems += [problem for value in lists for problem in _defaults(value, path)]
    problems += [problem for value in lists if value.id == "sequence" for problem in _too_many(value)]
    if problems := problems or _recipes_as_parts(node, path, recipe_dirs):
        raise UserError(*problems)


def mapping_node(path: Path) -> Any:
    """The top node of a YAML file, which must be a mapping.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    import yaml

    text = text_of(path)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise UserError(yaml_problem(error, str(path), text)) from None
    except RecursionError:
        raise UserError(Problem(str(path), *TOO_DEEP)) from None
    if node is None:
        raise UserError(Problem(str(path), "is empty", BEGIN))
    if not isinstance(node, yaml.MappingNode):
        kind = "a list" if isinstance(node, yaml.SequenceNode) else "a single value"
        raise UserError(Problem(str(path), f"holds {kind}, not a mapping of keys", BEGIN))
    return node


def groups_chosen(path: Path) -> set[str]:
    """Groups of which the list of defaults in a recipe's own file makes a choice."""
    lists = [value for key, value in mapping_node(path).value if key.value == "defaults"]
    entries = [item.value[0] for items in lists for item in items.value if item.id == "mapping"]
    return {str(key.value).removeprefix("override ").strip("/ ") for key, _ in entries}


def wrong_choices(path: Path, folders: Sequence[Path]) -> list[Problem]:
    """Problems of choices in a recipe's own list of defaults that no folder of groups has, or that need an environment
    variable which is not set; Hydra names one."""
    lists = [value for key, value in mapping_node(path).value if key.value == "defaults"]
    problems = []
    for group, node in (item.value[0] for items in lists for item in items.value if item.id == "mapping"):
        name = str(group.value).removeprefix("override ").strip("/ ").partition("@")[0]
        for option in node.value if node.id == "sequence" else [node]:
            chosen = option.value if option.id == "scalar" and option.tag.endswith(":str") else ""
            known = group_options(name, folders)
            variable = re.search(r"\$\{oc\.env:([^,}]+)\}", chosen)
            if known and variable and variable[1] not in os.environ:
                problems.append(needs_variable(name, variable[1], chosen))
            elif known and re.fullmatch(r"[\w-]+", chosen) and chosen not in known:
                problems.append(Problem(name, "there is no such configuration", did_you_mean(chosen, known), chosen))
    return problems


def _too_many(node: Any) -> Iterator[Problem]:
    """Problems of lists in ``defaults`` that choose several complete options of a group."""
    for group, options in (item.value[0] for item in node.value if item.id == "mapping" and item.value):
        name = str(group.value).removeprefix("override ").strip("/ ").partition("@")[0]
        if options.id == "sequence" and (
            problem := too_many_options(name, [str(each.value) for each in options.value])
        ):
            yield problem


def missing_base(raw: Any, path: Path) -> list[Problem]:
    """The problem of a composed recipe whose defaults do not include /base."""
    missing = [part for part in PARTS if part not in raw]
    if not missing:
        return []
    why = f"does not include /base: nothing gives {', '.join(missing)}"
    return [Problem("defaults", f"{path} {why}", BEGIN)]


def hides_base(path: Path) -> Problem | None:
    """The problem of a file beside the recipe that hides trireme's /base, so that a recipe includes itself."""
    for name in ("base", "schema_defaults"):
        if (file := path.parent / f"{name}.yaml").is_file():
            return Problem(str(file), f"hides trireme's own /{name} from the recipes beside it", "give it another name")
    return None


def refuse_scalars(raw: dict[str, Any], folders: Sequence[Path]) -> list[Problem]:
    """Problems of parts that hold a name instead of a mapping, such as ``plan: ddp`` beside ``defaults``.

    Args:
        folders: folders of groups.
    """
    problems = []
    for part, value in raw.items():
        names = value if isinstance(value, list) else [value]
        if part in GROUPS and value and all(isinstance(name, str) for name in names):
            shown = f"[{', '.join(names)}]" if isinstance(value, list) else value
            override = "override " if part in groups_of_base() else ""
            fix = f"a choice stands in the defaults: `- {override}/{part}: {shown}`"
            options = group_options(part, folders)
            if unknown := [name for name in names if name not in options]:
                fix = f"name a choice in the defaults, `- {override}/{part}: NAME`; {did_you_mean(unknown[0], options)}"
            problems.append(Problem(part, "expected a mapping of options", fix, value))
        elif part in READ_EARLY and not isinstance(value, dict):
            problems.append(Problem(part, "expected a mapping of options", f"write its options: {part}.KEY", value))
    return problems


def _defaults(node: Any, path: Path) -> list[Problem]:
    """Problems in the shape of a list of defaults. Hydra itself checks that the named files exist."""
    import yaml

    if not isinstance(node, yaml.SequenceNode):
        return [Problem("defaults", f"is not a list ({path})", BEGIN)]
    names = []
    for item in node.value:
        pair = isinstance(item, yaml.MappingNode) and len(item.value) == 1
        if pair and isinstance(item.value[0][0], yaml.ScalarNode):
            names.append(str(item.value[0][0].value))
        elif isinstance(item, yaml.ScalarNode) and item.tag.endswith(":str"):
            names.append(str(item.value))
        else:
            line = item.start_mark.line + 1
            fix = "write one choice in each: `- /base`, `- /model: NAME`, `- override /optimizer: NAME`"
            return [Problem("defaults", f"line {line} of {path} is neither a file nor a choice", fix)]
    plain = [name.strip("/") for name in names]
    if "_self_" in plain and "base" in plain and plain.index("_self_") < plain.index("base"):
        why = f"has _self_ before /base, whose defaults would replace the recipe's own values ({path})"
        return [Problem("defaults", why, "write _self_ last")]
    return []


def _recipes_as_parts(node: Any, path: Path, recipe_dirs: Sequence[str]) -> list[Problem]:
    """Problems of recipes in a list of defaults that Hydra would merge into a part of the same name."""
    entries = [item for key, value in node.value if key.value == "defaults" for item in value.value]
    pairs = [(item.value[0][0].value, item.value[0][1].value) for item in entries if item.id == "mapping"]
    names = [str(item.value) for item in entries if item.id == "scalar"]
    names += [f"{group}/{option}" for group, option in pairs if isinstance(option, str) and "@" not in group]
    nested = [name for name in names if name.strip("/").partition("/")[0] not in GROUPS and "/" in name.strip("/")]
    if not nested:
        return []
    known = dict(list_recipes(recipe_dirs))
    why = f"is a recipe, not a choice of a part ({path})"
    return [
        Problem("defaults", why, f"to build on it, write `- {name.strip('/')}@_global_`", name)
        for name in nested
        if name.strip("/") in known
    ]


def _without_defaults(keys: list[str], path: Path) -> list[Problem]:
    """Problems of a file without ``defaults``; a file that holds every part (a run's recipe.yaml) needs none."""
    if all(part in keys for part in PARTS):
        return []
    near = next((key for key in keys if nearest(key, ["defaults"], cutoff=0.75)), None)
    if near:
        return [Problem(near, f"is not a key of recipes ({path})", "write defaults: with an s")]
    return [Problem("defaults", f"is missing in {path}: nothing gives the usual choice of each part", BEGIN)]


def text_of(path: Path) -> str:
    """The text of a user's file.

    Raises:
        UserError: it cannot be read, or is not text in UTF-8.
    """
    try:
        data = path.read_bytes()
    except IsADirectoryError:
        raise UserError(Problem(str(path), "is a folder, not a file", "name a file in it")) from None
    except OSError as error:
        raise UserError(
            Problem(str(path), f"cannot be read: {error.strerror or error}", "give a file that you can read")
        ) from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(Problem(str(path), "is UTF-16, not UTF-8", "save it as UTF-8"))
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        why = f"is not text in UTF-8: byte 0x{data[error.start]:02x} in line {line}"
        raise UserError(Problem(str(path), why, "save it as UTF-8")) from None
    if "\0" in text:
        raise UserError(Problem(str(path), "is a binary file, not text", "give a text file"))
    return text


def doubled(node: Any, where: str, prefix: str = "", seen: frozenset[int] = frozenset()) -> Iterator[Problem]:
    """Problems of keys that stand twice in one mapping, at any depth."""
    import yaml

    if id(node) in seen:  # an anchor inside itself
        return
    seen |= {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from doubled(item, where, f"{prefix}{index}.", seen)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":
                why = f"is given twice in {where}, in lines {lines[name]} and {line}"
                yield Problem(f"{prefix}{name}", why, "keep one of them")
            lines[name] = line
            yield from doubled(value, where, f"{prefix}{name}.", seen)
