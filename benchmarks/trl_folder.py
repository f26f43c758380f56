"""Find TRL for the benchmarks that compare with it: it is not installed beside trireme, but in ``build/trl``."""

from __future__ import annotations

import sys
from pathlib import Path

TRL = Path(__file__).parents[1] / "build" / "trl"
INSTALL = "pip install --no-deps --target build/trl trl==1.16.0"


def add_trl() -> Path:
    """Make ``import trl`` possible; returns the folder. Without TRL, end the program and say how to install it."""
    if not (TRL / "trl").is_dir():
        sys.exit(f"TRL is not in {TRL}\n  fix: {INSTALL}")
    sys.path.insert(0, str(TRL))
    return TRL
