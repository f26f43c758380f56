"""Weight files of others: safetensors or PyTorch ``.bin``, one file or several with an index, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import _TYPES
from torch import Tensor

from .torch_files import load_torch_file

DTYPES: dict[str, torch.dtype] = _TYPES
"""Types by their names in safetensors."""
PATTERNS = ("*.safetensors", "pytorch_model*.bin")
"""Files with weights, the better kind first; a folder may hold both."""


class Stored(NamedTuple):
    """One tensor that lies in a file."""

    file: Path
    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]


def weight_files(path: Path) -> list[Path]:
    """The files that hold a model's weights: ``path`` itself, those of its index, or those that are called so.

    Raises:
        ValueError: an index cannot be read, or names something outside the folder.
    """
    if path.is_file():
        return [path]
    for index in (*sorted(path.glob("*.safetensors.index.json")), path / "pytorch_model.bin.index.json"):
        if index.is_file() and not (index.suffixes[0] == ".bin" and any(path.glob(PATTERNS[0]))):
            return _indexed(index)
    found = ([file for file in sorted(path.glob(pattern))] for pattern in PATTERNS)
    return next((files for files in found if files), [])


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of the weight files at ``path`` by its stored name; none is read yet.

    Tensors that share their memory (a tied head in a ``.bin``) are listed under each of their names.

    Raises:
        ValueError: a file is missing or damaged, or cannot be read without running code.
    """
    found: dict[str, Stored] = {}
    for file in weight_files(path):
        try:
            found |= _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: cannot be read ({error})") from None
    return found


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index}: is no index of weight files ({error!r})") from None
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ValueError(f"{index}: names a file outside its folder, {outside[0]!r}")
    return [index.parent / name for name in names]


def _safetensors(file: Path) -> dict[str, Stored]:
    opened = safe_open(str(file), framework="pt")

    def stored(name: str) -> Stored:
        part = opened.get_slice(name)
        if part.get_dtype() not in DTYPES:
            raise ValueError(f"{file}: {name} is of type {part.get_dtype()}, which is not read")
        return Stored(file, torch.Size(part.get_shape()), DTYPES[part.get_dtype()], lambda: _read(opened, name, file))

    return {name: stored(name) for name in opened.keys()}  # noqa: SIM118 (safe_open is not a mapping)


def _read(opened: Any, name: str, file: Path) -> Tensor:
    try:
        return opened.get_tensor(name)
    except SafetensorError as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None


def _pickled(file: Path) -> dict[str, Stored]:
    values = load_torch_file(file)
    for wrapper in ("state_dict", "model"):  # as training scripts save them
        if isinstance(values, dict) and isinstance(values.get(wrapper), dict):
            values = values[wrapper]
    if not isinstance(values, dict):
        raise ValueError(f"{file}: holds no tensors by name")
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return {name: Stored(file, t.shape, t.dtype, lambda t=t: t) for name, t in tensors.items()}
