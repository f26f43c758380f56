"""Check a pretrained tokenizer by its files: whether it exists, which packages it needs, and its number of tokens.

Neither transformers nor tokenizers is imported, so this takes milliseconds in ``trireme check``.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from ...errors import Problem, UserError
from ...models.hub import local_path
from ...models.json_file import read_json

FIELD = "data.tokenizer.path"
FAST = "tokenizer.json"
PACKAGES = {".model": "sentencepiece", ".tiktoken": "tiktoken"}
"""Suffix of a vocabulary file other than ``tokenizer.json`` -> package that reads it."""


def check_tokenizer(path: str, field: str = FIELD) -> tuple[list[Problem], int | None]:
    """Problems of the tokenizer at ``path`` (a folder or hub id), and its number of tokens, if known."""
    try:
        folder = tokenizer_folder(path, field)
    except UserError as error:
        return [problem for problem in error.problems if isinstance(problem, Problem)], None
    file = folder / FAST
    if not file.is_file():
        return [], None
    try:
        return [], _size(file)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"has a {FAST} that cannot be read ({type(error).__name__}: {error})"
        return [Problem(field, why, "fetch or save the tokenizer again", path)], None


def tokenizer_folder(path: str, field: str = FIELD) -> Path:
    """The local folder of a tokenizer; the files of a hub id are downloaded.

    Raises:
        UserError: there is no such folder, it holds no tokenizer, or the tokenizer needs a package that is missing.
    """
    folder = local_path(path, field=field)
    if folder.is_file():  # tokenizer.json itself
        folder = folder.parent
    if problem := lacks_tokenizer(folder, field, path):
        raise UserError(problem)
    return folder


def lacks_tokenizer(folder: Path, field: str, value: str) -> Problem | None:
    """The problem of a folder that should hold a tokenizer; None if it does."""
    if (folder / FAST).is_file() or all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        return None
    fix = "name the tokenizer that the weights were trained with in data.tokenizer.path"
    fix = fix if field != FIELD else "give a folder with tokenizer.json or a hub id, or null to train one"
    for file in sorted(folder.iterdir()):
        package = PACKAGES.get(file.suffix)
        if package and importlib.util.find_spec(package) is None:
            why = f"holds {file.name} and no {FAST}; to read it {package} is needed, which is not installed"
            return Problem(field, why, f"pip install {package}, or {fix}", value)
        if package:
            return None
    return Problem(field, f"the folder has no {FAST}", fix, value)


def unloadable(error: Exception, field: str, path: str) -> Problem:
    """The problem of an existing tokenizer that transformers cannot load."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    fix = "give a folder with tokenizer.json or a name on the hub, or null to train one"
    if isinstance(error, ImportError):
        package = next((name for name in ("sentencepiece", "tiktoken", "protobuf") if name in str(error).lower()), None)
        fix = f"pip install {package or 'the package that it names'}, or take a tokenizer that has a {FAST}"
    return Problem(field, f"no tokenizer can be loaded: {reason}", fix, path)


def _size(file: Path) -> int:
    values = read_json(file)
    vocabulary = values["model"]["vocab"]
    tokens = {entry[0] for entry in vocabulary} if isinstance(vocabulary, list) else set(vocabulary)
    return len(tokens | {token["content"] for token in values.get("added_tokens") or ()})
