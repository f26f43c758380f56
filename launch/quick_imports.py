"""Import torch and transformers a fifth sooner: Python does not look for garbage while it makes a million objects that
stay, and does not look through those again at every later collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quick_imports() -> Iterator[None]:
    """Around imports, in a process that trireme has started: what is alive at the end is never collected."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collected:
            gc.enable()
