"""Drop the arguments of a component's old ``_target_`` when a recipe file or an override sets another ``_target_``.
Also decide which of two mutually exclusive keys takes effect.

Hydra merges files key by key, so a recipe that writes ``optimizer: {_target_: torch.optim.RAdam, lr: 1e-3}`` over
/base's AdamW would hand RAdam the arguments of AdamW too. Two rules mend that:

1. A file that names another ``_target_`` begins the component anew: values of earlier files are dropped, values of this
   and later files stay. The same holds for ``optimizer._target_=...`` on the command line, except that values of the
   user's own recipe file stay if the new target accepts them.
2. A choice on the command line (``data=hub``, ``callbacks=minimal``) replaces a group's file, but the recipe's own
   values are merged later and were written for the old choice. Values that the new target does not accept are left
   out, and so are values of a callback that is no longer chosen. Both are reported.

The same merging decides between two keys that exclude each other: the later file's key counts (``trainer.max_steps`` of
a recipe over ``trainer.epochs`` of the file that it extends). If the two keys hold mappings (``data.source``,
``data.sources``), the key in a file that the command line chooses counts, even over the recipe's own. A key that a file
leaves open (``???``) stays open even if earlier files or the typed schema have a value; OmegaConf alone would ignore a
``???`` over it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any
from unittest import mock

from ..errors import Problem, UserError
from .find_recipes import groups_of_base
from .hydra_errors import GROUPS
from .overrides import CALLBACKS, alternatives, key_of, value_of

TARGET = "_target_"
SCHEMA = "schema_defaults"
"""Name of the typed schema's defaults, on which every recipe is composed."""


@contextmanager
def components_begin_anew(overrides: Sequence[str] = ()) -> Iterator[list[str]]:
    """Context in which Hydra merges files by rule 1. Hydra has no public hook for it, so a method of its loader is
    wrapped. Another is wrapped so that overrides may stand anywhere in a list of defaults, and a third is replaced
    because Hydra would compose a recipe twice, the first time only to read ``hydra.mode``.

    Args:
        overrides: those of the command line, which may choose files of groups (``data=files``).

    Yields:
        names of the files of the last composition (such as ``callbacks/default``), in the order of their merge.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_repository import ConfigRepository
    from hydra._internal.hydra import Hydra

    merge, read = ConfigLoaderImpl._compose_config_from_defaults_list, ConfigRepository._create_defaults_list
    pairs, files = alternatives(), []
    chosen = {f"{key_of(text)}/{value_of(text)}" for text in overrides}

    def merged(self: Any, defaults: Any, repo: Any) -> Any:
        files[:] = [str(default.config_path).strip("/") for default in defaults]
        layers = [self._load_single_config(default, repo) for default in defaults]
        loaded = iter(_pruned(layers, pairs, files, chosen))
        with mock.patch.object(self, "_load_single_config", lambda default, repo: next(loaded)):
            return merge(self, defaults, repo)

    def overrides_last(self: Any, config_path: str, defaults: Any) -> Any:
        """The entries of a list of defaults; Hydra refuses an override that stands before another entry."""
        entries = read(self, config_path, defaults)
        for entry in entries:
            _find_from_the_top(self, config_path, entry)
        return sorted(entries, key=lambda entry: entry.is_override())

    with (
        mock.patch.object(ConfigLoaderImpl, "_compose_config_from_defaults_list", merged),
        mock.patch.object(ConfigRepository, "_create_defaults_list", overrides_last),
        mock.patch.object(Hydra, "get_mode", lambda *_, **__: None),  # None: --multirun decides
    ):
        yield files


def _find_from_the_top(repo: Any, config_path: str, entry: Any) -> None:
    """Let a plain name in a list of defaults stand for a file or group at the top, if there is none in the folder of
    the list's own file. A recipe in a folder means the same alone, where Hydra looks from the top, and built upon."""
    folder = config_path.strip("/").rpartition("/")[0]
    attribute, exists = ("group", repo.group_exists) if hasattr(entry, "group") else ("path", repo.config_exists)
    name = getattr(entry, attribute)
    if folder and name and not name.startswith("/") and not exists(f"{folder}/{name}") and exists(name):
        setattr(entry, attribute, f"/{name}")


def _pruned(
    layers: Sequence[Any], pairs: Sequence[tuple[str, str]], names: Sequence[str], chosen: Collection[str] = ()
) -> list[Any]:
    """Loaded files in the order of their merge, without the values that a later file makes void.

    Args:
        pairs: keys that exclude each other.
        chosen: names of files that the command line chooses.
    """
    from omegaconf import DictConfig, OmegaConf

    def content(layer: Any) -> Any:
        return OmegaConf.to_container(layer.config, resolve=False) if isinstance(layer.config, DictConfig) else {}

    plain: list[Any] = [content(layer) for layer in layers]
    void: list[list[str]] = [[] for _ in plain]
    null: list[list[str]] = [[] for _ in plain]
    named: dict[str, str] = {}
    schema = names.index(SCHEMA) if SCHEMA in names else None
    for index, data in enumerate(plain):
        if schema is not None and index > schema:
            opened = list(_left_open(data))
            for earlier in void[schema:index]:
                earlier += opened
        for path, target in _targets({key: value for key, value in data.items() if key != "hydra"}):
            if named.get(path, target) != target:
                for earlier in void[:index]:
                    earlier.append(path)
            named[path] = target
    for key, other in (*pairs, *(pair[::-1] for pair in pairs)):
        deciding = [
            index for index, data in enumerate(plain) if _at(data, key) is not None and _at(data, other) is None
        ]
        for stronger, weaker in product(deciding, [index for index, data in enumerate(plain) if _written(data, other)]):
            decides = isinstance(_at(plain[stronger], key), dict) and names[stronger] in chosen
            stands = isinstance(_at(plain[weaker], other), dict) and names[weaker] in chosen
            if (decides, stronger) > (stands, weaker):
                null[weaker].append(other)
    written = [
        [[path for path in paths if _written(data, path)] for data, paths in zip(plain, part, strict=True)]
        for part in (void, null)
    ]
    pruned = [_without(*parts) for parts in zip(layers, *written, strict=True)]
    changed = [any(paths) for paths in zip(*written, strict=True)]
    left = [content(layer) if new else data for layer, data, new in zip(pruned, plain, changed, strict=True)]
    _refuse_lists(left, names)
    return pruned


def _refuse_lists(plain: Sequence[Any], names: Sequence[str]) -> None:
    """Refuse a list where an earlier file has a mapping, or the reverse: OmegaConf would not name the key.

    Raises:
        UserError: every such key.
    """
    problems: dict[str, Problem] = {}
    kinds: dict[str, type] = {}
    for data, name in zip(plain, names, strict=True):
        for path, value in _nodes(data):
            before = kinds.setdefault(path, type(value))
            if before is not type(value) and not path.startswith("hydra."):
                problems[path] = _other_kind(path, value, name)
    if problems:
        raise UserError(*problems.values())


def _other_kind(path: str, value: Any, name: str) -> Problem:
    if isinstance(value, dict):
        return Problem(path, f"expected a list, got a mapping (in {name})", "write a list", value)
    fix = f"write its keys: {path}: {{KEY: ...}}"
    if path in GROUPS and all(isinstance(item, str) for item in value):
        chosen = f"[{', '.join(map(str, value))}]" if path == CALLBACKS else next(iter(value), "NAME")
        kind = "sets are" if path == CALLBACKS else "a file is"
        override = "override " if path in groups_of_base() else ""
        fix = f"{kind} chosen in the defaults: `- {override}/{path}: {chosen}`"
    return Problem(path, f"expected a mapping of options, got a list (in {name})", fix, value)


def _nodes(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Paths of mappings and lists in a file, with their values."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        where = f"{path}.{key}" if path else str(key)
        if isinstance(value, (dict, list)):
            yield where, value
        yield from _nodes(value, where)


def _without(layer: Any, void: Sequence[str], null: Sequence[str]) -> Any:
    """A loaded file without the keys ``void``, and with null for the keys ``null``. Hydra reads files anew for each
    composition, and merges each once, so it is changed in place: a copy of the schema takes a twelfth of the time."""
    from omegaconf import OmegaConf, open_dict

    if not void and not null:
        return layer
    with open_dict(layer.config):
        for path in (*void, *null):
            parent, _, last = path.rpartition(".")
            node = OmegaConf.select(layer.config, parent) if parent else layer.config
            if not OmegaConf.is_dict(node) or last not in node:
                continue
            if path in void:
                del node[last]
            else:
                node[last] = None
    return layer


def _targets(tree: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Paths of the components that a file names, with their targets."""
    if not isinstance(tree, dict):
        return
    target = tree.get(TARGET)
    if isinstance(target, str) and target != "???":
        yield path, target
    for key, value in tree.items():
        yield from _targets(value, f"{path}.{key}" if path else str(key))


def _left_open(tree: Any, path: str = "") -> Iterator[str]:
    """Paths of values that a file leaves open (``???``)."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        where = f"{path}.{key}" if path else str(key)
        if value == "???" and not where.startswith("hydra."):
            yield where
        yield from _left_open(value, where)


def left_over(
    raw: dict[str, Any], as_written: dict[str, Any], chosen: dict[str, Any], overrides: Sequence[str], own: Any
) -> dict[str, str]:
    """Keys that overrides of the command line made void, each with the reason.

    Args:
        raw: the composed recipe.
        as_written: the recipe composed without overrides.
        chosen: the recipe with the files that overrides choose (``data=hub``), and without their values.
        overrides: overrides of the command line.
        own: values in the user's own recipe file; empty for a packaged recipe.
    """
    given = {key_of(text) for text in overrides} | set(_inside_values(overrides))
    void: dict[str, str] = {}
    old, files = dict(_targets(as_written)), dict(_targets(chosen))
    for path in {**old, **files}:
        before, node = old.get(path, files.get(path)), _at(raw, path)
        if not isinstance(node, dict) or any(path.startswith(f"{gone}.") for gone in void):
            continue
        target = node.get(TARGET)
        anew = f"{path}.{TARGET}" in given and target != files.get(path)  # another one than any file names
        if target == before and not anew:
            continue
        written = _at(chosen if anew else as_written, path) or {}
        before = files.get(path, before) if anew else before
        mine = {key for key in node if any(_is_or_within(name, f"{path}.{key}") for name in given)}
        if target is None:
            if not mine and "." in path:  # for a whole part the check reports the missing target
                void[path] = f"configures {before}, which is not among the {path.partition('.')[0]} now"
            continue
        for key in node.keys() - mine - {TARGET}:
            kept = not anew or key in (_at(own, path) or {})
            if key in written and not (kept and _takes(target, key)):
                void[f"{path}.{key}"] = f"written for {before}; {path} is {target} now"
    return void


def without(void: Iterable[str], raw: dict[str, Any]) -> list[str]:
    """Overrides that leave ``void`` keys out. Hydra deletes no key without a value, so null and open ones get one."""
    texts = []
    for key in void:
        texts += [f"++{key}=0"] if _at(raw, key) in (None, "???") else []
        texts.append(f"~{key}")
    return texts


def _inside_values(overrides: Sequence[str]) -> Iterator[str]:
    """Dotted keys inside values that are mappings: ``data.source={_target_: ..., paths: [...]}``."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    def walk(value: Any, path: str) -> Iterator[str]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield f"{path}.{key}"
                yield from walk(item, f"{path}.{key}")

    parser = OverridesParser.create()
    for text in overrides:
        if value_of(text).startswith("{"):
            override = parser.parse_override(text)
            yield from walk(override.value(), override.key_or_group)


def _is_or_within(name: str, path: str) -> bool:
    return name == path or name.startswith(f"{path}.")


def _takes(target: Any, key: str) -> bool:
    """Whether ``target`` accepts an argument ``key``; True if it cannot be imported, since the check reports that."""
    from ..configs.components import arguments_of
    from ..trainer.component import locate

    try:
        known = arguments_of(locate(str(target)))
    except Exception:  # the module is the user's and may fail in any way
        return True
    return known is None or key in known


def _written(tree: Any, path: str) -> bool:
    """Whether a file writes a key, null included. Most files do not, and need no copy without it."""
    parent, _, last = path.rpartition(".")
    node = _at(tree, parent) if parent else tree
    return isinstance(node, dict) and last in node


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(tree, dict):
            return None
        tree = tree.get(part)
    return tree
