"""When a part of a recipe changes its ``_target_``, the arguments of the old target go.

Hydra merges files key by key, so a recipe that writes ``optimizer: {_target_: torch.optim.RAdam, lr: 1e-3}`` over
/base's AdamW would hand RAdam the arguments of AdamW too. Two rules mend that:

1. A file that names another ``_target_`` begins the component anew: what files before it wrote there is dropped, what
   it and later files write stays. The same holds for ``optimizer._target_=...`` on the command line.
2. A choice on the command line (``data=hub``, ``callbacks=minimal``) replaces a group's file, but the recipe's own
   values come later and were written for the choice that is gone. Those that the new target cannot take are left out,
   and so is what configures a callback that is no longer there. Both are said.

The same merging decides between two keys that exclude each other: the later file's counts (``trainer.max_steps`` of a
recipe over ``trainer.epochs`` of the file that it extends). And what a file leaves open (``???``) stays open although
the typed schema has a default, for to OmegaConf a ``???`` that is merged over a value means nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

from .overrides import alternatives, key_of, value_of

TARGET = "_target_"
SCHEMA = "schema_defaults"
"""Name of the typed schema's defaults, on which every recipe is composed."""


@contextmanager
def components_begin_anew() -> Iterator[list[str]]:
    """Inside, Hydra merges files by rule 1. It has no public place for that, so one method of its loader is wrapped.

    Yields:
        the files of the last composition, in the order of their merge: ``callbacks/default``.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    merge = ConfigLoaderImpl._compose_config_from_defaults_list
    pairs, files = alternatives(), []

    def merged(self: Any, defaults: Any, repo: Any) -> Any:
        files[:] = [str(default.config_path).strip("/") for default in defaults]
        loaded = iter(_pruned([self._load_single_config(default, repo) for default in defaults], pairs, files))
        with mock.patch.object(self, "_load_single_config", lambda default, repo: next(loaded)):
            return merge(self, defaults, repo)

    with mock.patch.object(ConfigLoaderImpl, "_compose_config_from_defaults_list", merged):
        yield files


def _pruned(layers: Sequence[Any], pairs: Sequence[tuple[str, str]], names: Sequence[str]) -> list[Any]:
    """Loaded files in the order of their merge, without what a later one makes void."""
    from omegaconf import DictConfig, OmegaConf

    plain: list[Any] = [
        OmegaConf.to_container(layer.config, resolve=False) if isinstance(layer.config, DictConfig) else {}
        for layer in layers
    ]
    void: list[list[str]] = [[] for _ in plain]
    null: list[list[str]] = [[] for _ in plain]
    named: dict[str, str] = {}
    schema = names.index(SCHEMA) if SCHEMA in names else None
    for index, data in enumerate(plain):
        if schema is not None and index > schema:
            void[schema] += _left_open(data)
        for path, target in _targets({key: value for key, value in data.items() if key != "hydra"}):
            if named.get(path, target) != target:
                for earlier in void[:index]:
                    earlier.append(path)
            named[path] = target
        for key, other in (*pairs, *(pair[::-1] for pair in pairs)):
            if _at(data, key) is not None and _at(data, other) is None:
                for earlier in null[:index]:
                    earlier.append(other)
    return [_without(*parts) for parts in zip(layers, void, null, strict=True)]


def _without(layer: Any, void: Sequence[str], null: Sequence[str]) -> Any:
    """A copy of a loaded file without what lies at ``void``, and with null for ``null`` where it says something else.
    Files are cached, so none is changed in place."""
    import copy

    from omegaconf import OmegaConf, open_dict

    if not void and not null:
        return layer
    layer = copy.copy(layer)
    layer.config = copy.deepcopy(layer.config)
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
    """Paths that a file says must be given."""
    for key, value in tree.items() if isinstance(tree, dict) else ():
        where = f"{path}.{key}" if path else str(key)
        if value == "???" and not where.startswith("hydra."):
            yield where
        yield from _left_open(value, where)


def left_over(raw: dict[str, Any], as_written: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Keys that overrides of the command line made void, with why.

    Args:
        raw: the composed recipe.
        as_written: the recipe composed without overrides.
        overrides: those of the command line.
    """
    given = {key_of(text) for text in overrides} | set(_inside_values(overrides))
    void: dict[str, str] = {}
    old = dict(_targets(as_written))
    for path, before in old.items():
        node = _at(raw, path)
        if not isinstance(node, dict) or any(path.startswith(f"{gone}.") for gone in void):
            continue
        target = node.get(TARGET)
        if target == before:
            continue
        written = _at(as_written, path)
        mine = {key for key in node if any(_is_or_within(name, f"{path}.{key}") for name in given)}
        if target is None:
            if not mine and "." in path:  # of a whole part, the check says that it lacks a target
                void[path] = f"configures {before}, which is not among the {path.partition('.')[0]} now"
            continue
        named_here = f"{path}.{TARGET}" in given
        for key in node.keys() - mine - {TARGET}:
            if key in written and (named_here or not _takes(target, key)):
                void[f"{path}.{key}"] = f"written for {before}; {path} is {target} now"
    return void


def _inside_values(overrides: Sequence[str]) -> Iterator[str]:
    """Keys inside mappings that are given as values: ``data.source={_target_: ..., paths: [...]}``."""
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
    """Whether what ``target`` names has an argument ``key``; what cannot be imported is judged elsewhere."""
    from ..configs.components import arguments_of
    from ..trainer.component import locate

    try:
        known = arguments_of(locate(str(target)))
    except Exception:  # the module is the user's and may fail in any way
        return True
    return known is None or key in known


def _at(tree: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(tree, dict):
            return None
        tree = tree.get(part)
    return tree
