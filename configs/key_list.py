"""List the keys of a recipe with their types, defaults and meanings, for ``trireme keys`` and docs/keys.md.

Keys of the typed schema are read from its dataclasses and the docstrings under their fields. Keys of components
(optimizer, source, callbacks ...) are read from the signatures and docstrings of the targets in each group's files.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from ..errors import Problem
from ..trainer.component import locate
from .components import MISSING, argument_hints
from .names_of_other_tools import answer
from .schema import PROVIDED, RecipeConfig
from .suggest import nearest_key
from .validate import ComponentNode, schema_defaults
from .values import is_union, nearest

FOLDER = Path(__file__).parent
TYPES = {int: "int", float: "float", str: "str", bool: "bool", types.NoneType: "null", Any: "any"}
WIDTH = 80
TRACKER = "Callback that writes metrics for a viewer; it is added to the callbacks."


@dataclasses.dataclass(frozen=True)
class Key:
    """One key of a recipe."""

    path: str
    type: str
    default: str
    """Default in YAML; ``required`` if the user must give a value."""
    about: str
    target: str = ""
    """Name of the component, if the key is an argument of one."""


def keys(prefix: str = "") -> list[Key]:
    """Keys at or under ``prefix``, or else keys that begin with it, in the order of the schema.

    Args:
        prefix: dotted path, or the beginning of one; empty gives all keys.
    """
    found: list[Key] = []
    for key in _schema(RecipeConfig, schema_defaults(RecipeConfig), ""):
        found.append(key)
        if key.path in COMPONENTS and _touches(prefix, key.path):
            found += COMPONENTS[key.path]()
        if key.path == "callbacks":
            found.append(Key("tracker", "component", _group_default("tracker"), TRACKER + _choices("tracker")))
    inside = [key for key in found if key.path == prefix or key.path.startswith(f"{prefix}.")]
    return inside or [key for key in found if key.path.startswith(prefix)]


def _touches(prefix: str, path: str) -> bool:
    return prefix.startswith(path) or path.startswith(prefix)


def _schema(cls: type, defaults: Any, path: str) -> Iterator[Key]:
    hints, about = get_type_hints(cls, localns={"Component": ComponentNode}), field_docs(cls)
    for field in dataclasses.fields(cls):
        where, hint = f"{path}{field.name}", hints[field.name]
        members = get_args(hint) if is_union(hint) else (hint,)
        nested = next((one for one in members if isinstance(one, type) and dataclasses.is_dataclass(one)), None)
        default = defaults.get(field.name, MISSING) if isinstance(defaults, dict) else MISSING
        text = about.get(field.name, "")
        group = GROUP_OF.get(where, where)
        text += _choices(group)
        yield Key(where, type_name(hint), _group_default(group) or _yaml(default, nested), text)
        if nested is not None:
            inner = default if isinstance(default, dict) else schema_defaults(nested)
            yield from _schema(nested, inner, f"{where}.")
        if (named := _part_by_name(members)) is not None:
            yield from _schema(named, schema_defaults(named), f"{where}.NAME.")
        if (listed := _part_of_list(members)) is not None:
            yield from _schema(listed, schema_defaults(listed), f"{where}.NUMBER.")


def _part_of_list(members: Iterable[Any]) -> type | None:
    """The dataclass of the parts in a list, such as ``parameter_groups.rules``; None for any other type."""
    inside = (get_args(member)[0] for member in members if get_origin(member) is list)
    return next((one for one in inside if isinstance(one, type) and dataclasses.is_dataclass(one)), None)


def _part_by_name(members: Iterable[Any]) -> type | None:
    """The dataclass of the parts in a mapping by name, such as ``data.sources``; None for any other type."""
    inside = (get_args(member)[1] for member in members if get_origin(member) is dict)
    return next((one for one in inside if isinstance(one, type) and dataclasses.is_dataclass(one)), None)


def group_options(group: str) -> list[str]:
    """Names of the files of a group. Models are left out, since they are many: ``trireme models`` lists them."""
    return [] if group == "model" else sorted(file.stem for file in (FOLDER / group).glob("*.yaml"))


GROUP_OF = {"model.adapter": "adapter", "model.quantization": "quantization", "model.qat": "qat"}
"""Parts of a recipe whose files lie in a group of another name."""


def _choices(group: str) -> str:
    options = ", ".join(f"{group}={option}" for option in group_options(group))
    return f" A file of configs/{group}: {options}." if options else ""


@cache
def _group_defaults() -> dict[str, str]:
    base = yaml.safe_load((FOLDER / "base.yaml").read_text(encoding="utf-8"))["defaults"]
    return {group: choice or "null" for entry in base if isinstance(entry, dict) for group, choice in entry.items()}


def _group_default(path: str) -> str:
    return _group_defaults().get(path, "")


def unknown_prefix(prefix: str) -> Problem:
    """The problem of a prefix with which no key begins."""
    known = [key.path for key in keys()]
    near = nearest_key(prefix.rpartition(".")[2], [], "", known) or nearest(prefix, known)
    fix = f"did you mean {near}?" if near else f"keys begin with {', '.join(known_parts(known))}"
    return answer(prefix) or Problem("PREFIX", "no key begins with this", fix, prefix)


def known_parts(known: Iterable[str]) -> list[str]:
    """The parts of a recipe, in the order of ``known`` keys."""
    return list(dict.fromkeys(path.partition(".")[0] for path in known))


# -- components ---------------------------------------------------------------------------------------------------


def _of_group(group: str, path: str) -> Callable[[], list[Key]]:
    """A function that lists the arguments of all components in the files of a group, at ``path`` of the recipe."""

    def found() -> list[Key]:
        result: dict[tuple[str, str], Key] = {}
        for file in sorted((FOLDER / group).glob("*.yaml")):
            for where, node in _nodes(yaml.safe_load(file.read_text(encoding="utf-8")) or {}, path.split(".")[0]):
                for key in component_keys(node, where):
                    result.setdefault((key.path, key.target), key)
        return list(result.values())

    return found


def _nodes(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if not isinstance(node, dict):
        return
    if "_target_" in node:
        yield path, node
    for name, inner in node.items():
        yield from _nodes(inner, f"{path}.{name}")


def component_keys(node: dict[str, Any], path: str) -> Iterator[Key]:
    """Arguments of one component that a recipe can give, with the defaults of its file."""
    target = locate(node["_target_"])
    name = node["_target_"].rpartition(".")[2]
    about, hints = argument_docs(target), argument_hints(target)
    given = PROVIDED.get(path)
    for index, (argument, parameter) in enumerate(inspect.signature(target).parameters.items()):
        engine = given is not None and (index < given.positional or argument in given.names)
        if engine or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        default = node.get(argument, MISSING if parameter.default is parameter.empty else parameter.default)
        if _is_factory(default):
            default = _default_of_field(target, argument)
        yield Key(
            f"{path}.{argument}", type_name(hints.get(argument, Any)), _yaml(default), about.get(argument, ""), name
        )


COMPONENTS: dict[str, Callable[[], list[Key]]] = {
    "task": _of_group("task", "task"),
    "data.source": _of_group("data", "data"),
    "optimizer": _of_group("optimizer", "optimizer"),
    "collator": _of_group("collator", "collator"),
    "search.engine": lambda: [
        key
        for file in sorted((FOLDER / "search").glob("*.yaml"))
        if (node := (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("engine"))
        for key in component_keys(node, "search.engine")
    ],
    "callbacks": lambda: [*_of_group("callbacks", "callbacks")(), *_of_group("tracker", "callbacks")()],
}
"""Key of the schema -> function that lists the arguments of its components."""


def _is_factory(default: Any) -> bool:
    return type(default).__name__ == "_HAS_DEFAULT_FACTORY_CLASS"  # the mark of a factory in a dataclass's signature


def _default_of_field(target: Any, name: str) -> Any:
    field = next(field for field in dataclasses.fields(target) if field.name == name)
    return field.default_factory() if field.default_factory is not dataclasses.MISSING else MISSING


# -- docstrings ---------------------------------------------------------------------------------------------------


def field_docs(cls: type) -> dict[str, str]:
    """Field of a dataclass -> the docstring under it, there or in a dataclass that it derives from."""
    docs: dict[str, str] = {}
    for base in cls.__bases__:
        docs |= field_docs(base) if dataclasses.is_dataclass(base) else {}
    tree = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
    for field, after in pairwise(getattr(tree, "body", [])):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and _is_text(after):
            docs[field.target.id] = " ".join(after.value.value.split())
    return docs


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def argument_docs(target: Any) -> dict[str, str]:
    """Argument -> its text in the docstring's ``Args`` section; for dataclasses the docstring under the field."""
    if dataclasses.is_dataclass(target) and inspect.isclass(target):
        return field_docs(target)
    text = inspect.getdoc(target) or ""
    if inspect.isclass(target):
        text += "\n" + (inspect.getdoc(target.__init__) or "")
    section = re.search(r"^Args:\n((?:[ ]+.*\n?|\n)+)", text + "\n", re.MULTILINE)
    docs: dict[str, str] = {}
    name = ""
    for line in textwrap.dedent(section[1]).splitlines() if section else []:
        entry = re.match(r"(\w+): (.*)", line)
        if entry:
            name = entry[1]
        if name:
            docs[name] = f"{docs.get(name, '')} {entry[2] if entry else line.strip()}".strip()
    return {name: text[:1].upper() + text[1:] for name, text in docs.items()}


# -- output -------------------------------------------------------------------------------------------------------


def type_name(hint: Any) -> str:
    """A type annotation in words, such as ``int | null``, ``fp32 | bf16``, ``list of str``."""
    if hint in TYPES:
        return TYPES[hint]
    origin, inside = get_origin(hint), get_args(hint)
    if origin is Literal:
        return " | ".join(str(choice) for choice in inside)
    if is_union(hint):
        return " | ".join(type_name(member) for member in inside)
    if origin in (list, tuple) or hint in (list, tuple):
        return f"list of {type_name(inside[0])}" if inside else "list"
    return "component" if hint is ComponentNode else "mapping"


def _yaml(value: Any, nested: Any = None) -> str:
    if isinstance(value, str) and value == MISSING:
        return "required"
    if nested is not None and value is not None:
        return ""
    if dataclasses.is_dataclass(value):
        return ""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return text.removesuffix("...").strip()


def keys_text(found: list[Key]) -> str:
    """Keys for a terminal of 80 columns: each key with its type and default, then its meaning."""
    blocks = []
    for key in found:
        of = f"  [{key.target}]" if key.target else ""
        default = f" = {key.default}" if key.default else ""
        head = f"{key.path}: {key.type}{default}{of}"
        lines = textwrap.wrap(head, WIDTH, subsequent_indent="      ", break_long_words=False)
        about = key.about.replace("``", "")
        lines += textwrap.wrap(about, WIDTH, initial_indent="    ", subsequent_indent="    ", break_long_words=False)
        blocks.append("\n".join(lines))
    return "\n".join(blocks) + "\n"


def keys_page() -> str:
    """The text of docs/keys.md."""
    lines = [
        "# Keys of a recipe",
        "",
        "This page lists every key of a recipe with its type, default and meaning. In a terminal, use",
        "`trireme keys PREFIX`. Option names of other tools: [coming-from.md](coming-from.md). Your own components:",
        "[extending.md](extending.md). `make pages` makes this page from the code.",
    ]
    part = ""
    for key in keys():
        if key.path.split(".")[0] != part:
            part = key.path.split(".")[0]
            lines += ["", f"## {part}", "", "| key | type | default | meaning |", "| --- | --- | --- | --- |"]
        about = f"{key.about} (`{key.target}`)" if key.target else key.about
        cells = (f"`{key.path}`", key.type, f"`{key.default}`" if key.default else "", about.replace("``", "`"))
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"
