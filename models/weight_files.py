"""List and read the tensors of weight files: safetensors or PyTorch ``.bin``, single or sharded.

A folder may hold several sets of weights, such as the same model in two formats, or an adapter. One set is chosen by
its file name, as in ``transformers``, and files that are not read are reported. If no file name decides, the folder is
refused.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import _TYPES
from torch import Tensor

from .torch_files import load_torch_file
from .weight_sets import chosen_set

DTYPES: dict[str, torch.dtype] = _TYPES
"""The torch type for each type name of safetensors."""


class Stored(NamedTuple):
    """A tensor in a file, which ``read`` loads."""

    file: Path
    shape: torch.Size
    dtype: torch.dtype
    read: Callable[[], Tensor]
    part: Callable[[int, int], Tensor] | None = None
    """Loads some rows of the tensor; None if the tensor can only be read as a whole."""
    packed: Callable[[], dict[str, Tensor]] | None = None
    """Loads the tensors of a quantised weight as they are stored; ``read`` dequantises them. None for other weights."""
    form: Any = None
    """The quantised format of ``packed``."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows ``start`` to ``stop`` (exclusive).

        Raises:
            ValueError: the file cannot be read.
        """
        if not self.shape:
            return self.read()
        return self.read()[start:stop] if self.part is None else self.part(start, stop)


def weight_files(path: Path) -> list[Path]:
    """Files with a model's weights: ``path`` itself, the files of its index, or those of the chosen set in the folder.

    Raises:
        ValueError: an index cannot be read or names something outside the folder, or no name decides between several.
    """
    return list(chosen_set(path).files)


def stored_tensors(path: Path) -> dict[str, Stored]:
    """Every tensor of the weight files at ``path`` by its stored name; none is read yet.

    Tensors that share their memory (a tied head in a ``.bin``) are listed under each of their names.

    Raises:
        ValueError: a file is missing or damaged, or cannot be read without running code; or two hold the same tensor.
    """
    found: dict[str, Stored] = {}
    chosen = chosen_set(path)
    for file in chosen.files:
        try:
            held = _safetensors(file) if file.suffix == ".safetensors" else _pickled(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file}: cannot be read ({error})") from None
        for name, tensor in held.items():
            if name in found and chosen.index.get(name) not in (file.name, found[name].file.name):
                raise ValueError(f"{name} is stored in both {found[name].file.name} and {file.name}")
            if name not in found or chosen.index.get(name) == file.name:
                found[name] = tensor
    return found


def _safetensors(file: Path) -> dict[str, Stored]:
    opened = safe_open(str(file), framework="pt")

    def stored(name: str) -> Stored:
        part = opened.get_slice(name)
        if part.get_dtype() not in DTYPES:
            raise ValueError(f"{file}: {name} is of type {part.get_dtype()}, which is not supported")
        return Stored(
            file,
            torch.Size(part.get_shape()),
            DTYPES[part.get_dtype()],
            lambda: _read(lambda: opened.get_tensor(name), file),
            lambda start, stop: _read(lambda: opened.get_slice(name)[start:stop], file),
        )

    return {name: stored(name) for name in opened.keys()}  # noqa: SIM118 (safe_open is not a mapping)


def _read(read: Callable[[], Tensor], file: Path) -> Tensor:
    try:
        return read()
    except SafetensorError as error:
        raise ValueError(f"{file}: cannot be read ({error})") from None


def _pickled(file: Path) -> dict[str, Stored]:
    values = load_torch_file(file)
    for wrapper in ("state_dict", "model"):  # as training scripts save them
        if isinstance(values, dict) and isinstance(values.get(wrapper), dict):
            values = values[wrapper]
    if not isinstance(values, dict):
        raise ValueError(f"{file}: does not map names to tensors")
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    return {name: Stored(file, t.shape, t.dtype, lambda t=t: t) for name, t in tensors.items()}
