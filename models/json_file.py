"""Read the JSON files beside a model's weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: Path) -> Any:
    """What a file holds.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON, or brackets stand in brackets deeper than Python can follow.
    """
    try:
        return json.loads(path.read_text())
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
