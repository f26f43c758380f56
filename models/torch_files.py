"""Read files that ``torch.save`` wrote, without running any code that is in them.

A pickle is a program. ``torch.load(weights_only=True)`` knows a closed list of harmless functions and refuses every
other; for classes that are known to lie in somebody's files, an inert class stands in and the real one is not imported.
"""

from __future__ import annotations

import re
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.serialization import (
    add_safe_globals,
    clear_safe_globals,
    get_safe_globals,
    get_unsafe_globals_in_checkpoint,
)

_LOCK = threading.Lock()


class Inert:
    """Stands for an object of a class that is not loaded: keeps its state, has no behaviour."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


def attributes(value: Any) -> dict[str, Any]:
    """What a dictionary or an inert object holds; nothing of anything else."""
    return value if isinstance(value, dict) else dict(vars(value)) if isinstance(value, Inert) else {}


def load_torch_file(path: Path, known: Iterable[str] = ()) -> Any:
    """Tensors and plain values of a file of ``torch.save``, on the CPU; tensors are read when they are touched.

    Args:
        known: full names of classes that become ``Inert`` objects.

    Raises:
        ValueError: the file asks for anything else, or cannot be read; the message names the file.
    """
    with _LOCK, _only(known):
        try:
            return _load(path)
        except Exception as error:  # a damaged pickle may end in any error; nothing has been run
            raise ValueError(f"{path}: {_reason(path, error)}") from None


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # else the format of before torch 1.6, which cannot be mapped
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


@contextmanager
def _only(known: Iterable[str]) -> Iterator[None]:
    """For this load, what other libraries have declared safe is not."""
    before = get_safe_globals()
    clear_safe_globals()
    # One class per name: torch looks stand-ins up by name, and lets only listed classes be filled.
    add_safe_globals([(type("Inert", (Inert,), {}), name) for name in known])
    try:
        yield
    finally:
        clear_safe_globals()
        add_safe_globals(before)


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"cannot be read ({error.strerror or error})"
    try:
        asked = get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # not a zip file, or a damaged one
        asked = []
    return refusal(error, asked)


def refusal(error: Exception, asked: Iterable[str] = ()) -> str:
    """Why torch's restricted loader gave up, in a line.

    Args:
        asked: functions and classes that the file names, where they are known.
    """
    names = sorted({*asked, *re.findall(r"GLOBAL (\S+)", str(error))})
    if names:
        return f"asks for {', '.join(names[:5])}; only tensors and plain values are read, nothing was run"
    told = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
    return f"cannot be read without running code in it, or is damaged ({told})"
