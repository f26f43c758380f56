"""Complete a recipe's keys and choices from a cache, because composing the recipe with Hydra takes too long for a TAB.

The cache has one JSON file per recipe. Its name is a digest of everything that Hydra read: the recipe, the chosen
groups, and the modification times of all configuration files and of the typed schema.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..version import __version__
from .find_recipes import PACKAGE, config_folders

Tree = dict[str, Any]
"""``config``: the composed recipe, with lists as mappings from index to item; ``groups``: group -> its options."""
SCHEMA = ("configs", "launch", "models", "parallel", "trainer")
"""Folders whose Python files hold the dataclasses of the schema."""


def tree_of(recipe: Path, before: Sequence[str], dirs: Sequence[str]) -> Tree:
    """The tree of a recipe, from the cache or composed by Hydra.

    Args:
        before: overrides that were typed already; only choices of groups change the keys.
    """
    choices = [word for word in before if "." not in word.partition("=")[0]]
    folders = config_folders(recipe, dirs)
    file = _cache_file(recipe, choices, folders)
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError):
        tree = {"config": _compose(recipe, choices, dirs), "groups": _groups(folders)}
    _keep(file, tree)
    return tree


def matches(tree: Tree, word: str) -> list[str]:
    """Completions of ``word`` in the style of Hydra's own: groups and keys end in ``=``, mappings in ``.``; after the
    ``=`` come the options of a group or the value of a key."""
    sign = word[: 1 if word[:1] in ("+", "~") else 0]
    key, equals, _ = word.removeprefix(sign).partition("=")
    if equals and key in tree["groups"]:
        found = [f"{sign}{key}={option}" for option in tree["groups"][key]]
        return sorted(each for each in found if each.startswith(word))
    groups = [f"{sign}{group}{'' if sign == '~' else '='}" for group in tree["groups"]]
    return sorted({each for each in [*groups, *_keys(tree["config"], word)] if each.startswith(word)})


def _keys(config: Tree, word: str) -> Iterable[str]:
    key, equals, _ = word.partition("=")
    base, dot, _ = key.rpartition(".")
    path = key if equals else base
    node: Any = config
    for part in path.split(".") if path else ():
        if not isinstance(node, dict) or part not in node:
            return
        node = node[part]
    if isinstance(node, dict):
        if not equals:
            yield from (f"{base}{dot}{name}{'.' if isinstance(child, dict) else '='}" for name, child in node.items())
    elif equals and node is not None:
        yield f"{key}={str(node).lower() if isinstance(node, bool) else node}"


def _compose(recipe: Path, choices: Sequence[str], dirs: Sequence[str]) -> Tree:
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from .run_hydra import register_schema
    from .searchpath import added_folders

    register_schema()
    folder = str(recipe.parent.resolve())
    with added_folders(config_folders(recipe, dirs)[1:]), initialize_config_dir(folder, version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration(recipe.stem, overrides=list(choices), run_mode=RunMode.RUN)
    return {name: _plain(config, name) for name in map(str, config) if name != "hydra"}


def _plain(node: Any, key: Any) -> Any:
    """A child of an OmegaConf node as plain data; None for a value that cannot be resolved here."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        if OmegaConf.is_missing(node, key):
            return ""
        child = node[key]
    except (OmegaConfBaseException, ValueError):  # an interpolation that only a run can resolve
        return None
    if OmegaConf.is_dict(child):
        return {str(name): _plain(child, name) for name in child}
    if OmegaConf.is_list(child):
        return {str(index): _plain(child, index) for index in range(len(child))}
    return child


def _groups(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Folders with YAML files -> the names of the files."""
    options: dict[str, set[str]] = {}
    for folder in folders:
        for file in folder.glob("*/*.yaml"):
            options.setdefault(file.parent.name, set()).add(file.stem)
    return {group: sorted(names) for group, names in sorted(options.items())}


def _cache_file(recipe: Path, choices: Sequence[str], folders: Sequence[Path]) -> Path:
    patterns = ("*.yaml", "*/*.yaml")
    read = [recipe, *(file for folder in folders for pattern in patterns for file in folder.glob(pattern))]
    read += [file for folder in SCHEMA for file in (PACKAGE / folder).rglob("*.py")]
    state = [(str(file), file.stat().st_mtime_ns) for file in sorted(set(read)) if file.exists()]
    key = json.dumps([1, __version__, str(recipe.resolve()), list(choices), state])
    root = Path(os.path.expanduser(os.environ.get("TRIREME_CACHE") or "~/.cache/trireme"))
    return root / "completion" / f"{hashlib.blake2b(key.encode(), digest_size=12).hexdigest()}.json"


def _keep(file: Path, tree: Tree) -> None:
    """Write a tree into the cache and remove files older than a month; a read-only folder is no error."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(tree))
        os.replace(partial, file)
        month = partial.parent.stat().st_mtime - 30 * 86400
        for old in file.parent.glob("*.json"):
            if old.stat().st_mtime < month:
                old.unlink()
    except (OSError, TypeError, ValueError):
        return
