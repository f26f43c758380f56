"""Print notes on standard error for the user of a command, each note only once and on rank 0 only."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

_told: set[str] = set()


def tell(notes: Sequence[str]) -> None:
    """Print each note once, on rank 0."""
    for note in notes:
        if note not in _told and os.environ.get("RANK", "0") == "0":
            shown = note.encode(errors="backslashreplace").decode()  # a word may hold half a surrogate
            print(f"note: {shown}", file=sys.stderr, flush=True)
        _told.add(note)
