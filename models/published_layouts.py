"""Read model configurations in other libraries' formats, for the architectures that trireme implements itself.

At present this is Perceiver AR as saved by the library perceiver-io. The configuration is read from a config.json, or
from the hyperparameters in a PyTorch Lightning checkpoint (``.ckpt``). Checkpoints are read by ``torch_files``, which
runs no code in them.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import Problem, UserError
from .family import families

SUFFIX = ".ckpt"
"""Suffix of Lightning's checkpoint files."""
HYPERPARAMETERS = "hyper_parameters"


def published_file(path: Path) -> Path | None:
    """``path``, if it is a checkpoint of Lightning."""
    return path if path.suffix == SUFFIX and path.is_file() else None


def as_ours(values: dict[str, Any]) -> dict[str, Any]:
    """The content of a config.json in trireme's fields, if another library has written it for one of the families."""
    for family in families().values():
        module, kinds = family.published
        if values.get("model_type") in kinds:
            return _translated(module, values) or values
    return values


def read_published(file: Path) -> dict[str, Any]:
    """Fields of the configuration in a checkpoint of Lightning.

    Raises:
        UserError: it cannot be read without running code, or its hyperparameters are those of no family.
    """
    try:
        given = _hyperparameters(file, file.stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        why, _, harmless = str(error).removeprefix(f"{file}: ").partition("; ")
        fix = f"{harmless or 'fetch the file again'}; save its state_dict and hyper_parameters alone with torch.save"
        raise UserError(Problem("model.weights", f"cannot be used: {why}", fix, str(file))) from None
    for family in families().values():
        if family.published[0] and (found := _translated(family.published[0], given)):
            return found
    able = ", ".join(family.title for family in families().values() if family.published[0])
    why = f"is a checkpoint of Lightning whose hyperparameters ({', '.join(sorted(given)[:6]) or 'none'}) are not known"
    fix = f"give one of {able}, or a folder that transformers has saved"
    raise UserError(Problem("model.weights", why, fix, str(file)))


def _translated(module: str, values: dict[str, Any]) -> dict[str, Any] | None:
    return importlib.import_module(module).config(values)


@lru_cache(maxsize=4)
def _hyperparameters(file: Path, changed: int) -> dict[str, Any]:
    from .torch_files import load_torch_file

    values = load_torch_file(file)
    found = values.get(HYPERPARAMETERS) if isinstance(values, dict) else None
    return {str(name): value for name, value in found.items()} if isinstance(found, dict) else {}
