"""Decide whether two paths in recipes name the same files: one place under two spellings, or files of equal content.
Contents are compared by fingerprints, which are computed here and kept in checkpoints.

A run may go on with its files under other paths: relative instead of absolute, through a symbolic link, or moved. What
counts is the content. Checkpoints hold fingerprints of the files that a recipe names, and of the data made of them.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..models.json_file import read_json
from .checkpoint.layout import STATE
from .data.content_stamp import content_stamp, hash_json

if TYPE_CHECKING:
    from ..configs.schema import RecipeConfig
    from ..models.model_config import ModelConfig

LONGEST = 4096
"""More characters than a path has; longer texts are not looked for on the disk."""
OF_THE_DATA = ("data.source.", "data.eval_source.", "data.sources.")
"""Beginnings of keys whose paths stand for documents, which every resume compares after it has read them."""


def same_place(then: Any, now: Any) -> bool:
    """Whether two values of a recipe, texts or lists of texts, name the same existing files or folders."""
    if isinstance(then, list) and isinstance(now, list):
        pairs = zip(then, now, strict=False)
        return len(then) == len(now) and all(one == two or same_place(one, two) for one, two in pairs)
    there = _real(now)
    return bool(there) and _real(then) == there


def print_of(path: str | None, *further: str | None) -> str | None:
    """A fingerprint of a file, or of the files of a folder, from their heads and tails; else of the name itself.

    Args:
        further: values that identify, together with the name, files that are not on this machine.
    """
    if path is None:
        return None
    place = Path(os.path.expanduser(path))
    files = [place] if place.is_file() else sorted(file for file in place.glob("*") if file.is_file())
    return hash_json([content_stamp(file) for file in files] or [path, *further])


def weights_print(model: ModelConfig) -> str | None:
    """A fingerprint of ``model.weights``."""
    return print_of(model.weights, model.revision)


def prints_of_places(recipe: RecipeConfig) -> dict[str, str]:
    """Fingerprints of files on this machine that the recipe names, by key, except weights and documents."""
    return {key: str(print_of(path)) for key, path in _named(recipe) if _real(path)}


def unlike(changed: Mapping[str, tuple[Any, Any]], recipe: RecipeConfig, checkpoint: Path, resumes: bool) -> list[str]:
    """Changed keys without those that name files of equal content.

    Args:
        changed: key -> value in the recipe of the checkpoint, and now.
        resumes: a run goes on, which compares its documents and the numbers of its base after it has read them.
    """
    if not changed or not (made_of := _made_of(checkpoint)):
        return list(changed)
    same = {key for key, path in _named(recipe) if made_of.get("places", {}).get(key, "") == print_of(path)}
    model = recipe.model
    if (model.adapter is not None and resumes) or made_of.get("weights", "") == weights_print(model):
        same |= {"model.weights", "model.revision"} if model.weights is not None else set()
    if resumes and made_of.get("tokenizer") is not None:
        same.add("data.tokenizer.path")
    if resumes and made_of.get("documents") is not None:
        same |= {key for key, values in changed.items() if key.startswith(OF_THE_DATA) and _are_paths(*values)}
    return [key for key in changed if key not in same]


def _named(recipe: RecipeConfig) -> Iterator[tuple[str, str]]:
    """Keys that name a file or folder of which only a part is in a checkpoint, and their values."""
    model, chat = recipe.model, recipe.data.chat
    if model.adapter is not None and model.adapter.path is not None:
        yield "model.adapter.path", model.adapter.path
    for name, merged in model.merged_adapters.items():
        yield f"model.merged_adapters.{name}.path", merged.path
    if recipe.data.processor is not None:
        yield "data.processor", recipe.data.processor
    if chat is not None and isinstance(chat.template, str):
        yield "data.chat.template", chat.template


def _are_paths(then: Any, now: Any) -> bool:
    """Whether two values may name the same documents: the paths in the second one exist."""
    values = now if isinstance(now, list) else [now]
    return type(then) is type(now) and bool(values) and all(_real(value) for value in values)


def _real(value: Any) -> set[str]:
    """The existing paths that a path or pattern names, without symbolic links; empty for all other values."""
    if not isinstance(value, str) or not value.strip() or len(value) > LONGEST or "\n" in value:
        return set()
    whole = os.path.expanduser(value)
    found = [whole] if os.path.exists(whole) else glob.glob(whole, recursive=True)
    return {os.path.realpath(path) for path in found}


def _made_of(checkpoint: Path) -> dict[str, Any]:
    """The fingerprints in a checkpoint; empty if it has none, or is that of another tool."""
    try:
        return dict(read_json(checkpoint / STATE)["trainer"]["made_of"])
    except (OSError, ValueError, KeyError, TypeError):
        return {}
