"""Read files written by ``torch.save`` without running any code in them.

Unpickling can run arbitrary code. ``torch.load(weights_only=True)`` allows only a fixed list of harmless functions and
refuses everything else. Callers may name further classes that a file is known to contain. Objects of these classes
become ``Inert`` objects, and the real classes are not imported.
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
    """Replaces an object whose class is not imported; it keeps the object's state and has no methods."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments


def attributes(value: Any) -> dict[str, Any]:
    """Content of a dictionary or an inert object; empty for any other value."""
    return value if isinstance(value, dict) else dict(vars(value)) if isinstance(value, Inert) else {}


def load_torch_file(path: Path, known: Iterable[str] = ()) -> Any:
    """Read the tensors and plain values of a ``torch.save`` file. Files are memory-mapped, so tensors are read on use.

    Args:
        known: full names of classes whose objects become ``Inert``.

    Raises:
        ValueError: the file asks for any other class or function, or cannot be read; the message names the file.
    """
    with _LOCK, _restricted_to(known):
        try:
            return _load(path)
        except Exception as error:  # a damaged pickle may raise any error; no code of it has been run
            raise ValueError(f"{path}: {_reason(path, error)}") from None


def _load(path: Path) -> Any:
    with path.open("rb") as file:
        zipped = file.read(4) == b"PK\x03\x04"  # the format of torch before 1.6 is no zip file and cannot be mapped
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Detected pickle protocol")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)


@contextmanager
def _restricted_to(known: Iterable[str]) -> Iterator[None]:
    """Accept only the classes in ``known`` during one load, not those that other libraries have declared safe."""
    before = get_safe_globals()
    clear_safe_globals()
    # One class per name, because torch looks classes up by name and sets the state of listed classes only.
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
    except Exception:  # the file is not a zip file, or is damaged
        asked = []
    return refusal(error, asked)


def refusal(error: Exception, asked: Iterable[str] = ()) -> str:
    """One line that says why torch's restricted loader failed.

    Args:
        asked: functions and classes that the file asks for, if they are known.
    """
    names = sorted({*asked, *re.findall(r"GLOBAL (\S+)", str(error))})
    if names:
        return f"asks for {', '.join(names[:5])}; only tensors and plain values are read, no code was run"
    told = (str(error).strip() or type(error).__name__).splitlines()[-1][:200]
    return f"cannot be read without running code in it, or is damaged ({told})"
